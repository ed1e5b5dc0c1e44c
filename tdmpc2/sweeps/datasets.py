"""The data sets of a sweep: made of its own runs' replay buffers, or imported ones that its runs name."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from tdmpc2.errors import UserError

MANIFEST = "dataset.json"


@dataclasses.dataclass(frozen=True)
class PlannedStore:
    """One run's replay buffer, as a part of a data set."""

    run: str
    """Name of the run."""
    folder: Path
    task: str
    seed: int


@dataclasses.dataclass(frozen=True)
class PlannedDataset:
    """A data set that the sweep builds when its runs are done."""

    name: str
    tasks: tuple[str, ...]
    """In the order of their ids."""
    stores: tuple[PlannedStore, ...]
    folder: Path
    """Folder of the sweep's data sets."""

    def check(self) -> None:
        """Refuse a data set of this name that was made of other runs.

        Raises:
            UserError: there is such a one, or it is damaged; says what differs.
        """
        if not (self.folder / self.name / MANIFEST).is_file():
            return
        from tdmpc2.data.dataset import Dataset

        dataset = Dataset.read(self.folder / self.name)
        there = {dataset.store_folder(record).resolve(): record for record in dataset.stores}
        planned = {store.folder.resolve(): store.run for store in self.stores}
        differences = [f"lacks {run}" for folder, run in planned.items() if folder not in there]
        differences += [f"holds {folder} besides" for folder in there if folder not in planned]
        held = tuple(task.name for task in dataset.tasks)
        if not differences and held != self.tasks:
            differences = [f"its tasks are {', '.join(held)}, the declared ones {', '.join(self.tasks)}"]
        if differences:
            shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
            raise UserError(
                f"{dataset.folder}: this data set was built from other runs than are declared now ({shown}); nothing "
                "was started. Declare the new one under another name, or delete that folder and the runs that learned "
                "from it"
            )

    def build(self) -> None:
        """Build it, or take the one that is there.

        Raises:
            UserError: a buffer cannot be used, or the one that is there is another.
        """
        from tdmpc2.data.dataset import StoreSource
        from tdmpc2.training.datasets import build_dataset

        sources = [StoreSource(store.folder, store.seed, finished=True) for store in self.stores]
        build_dataset(self.name, sources, self.tasks, self.folder)


def existing_tasks(data: str, results_dir: str | os.PathLike[str], sweep: str) -> tuple[str, ...]:
    """The tasks of a data set that the sweep does not build: imported, or built by hand.

    Args:
        data: its name, of the sweep's data sets or those of all results, or its folder.
        results_dir: folder of all results.
        sweep: name of the sweep.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from tdmpc2.training.datasets import find_dataset

    return tuple(task.name for task in find_dataset(data, Path(results_dir), sweep).tasks)
