"""Data sets and where they come from: replay stores found among runs, data sets built once and found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmpc2.config import Config
from tdmpc2.data.dataset import COPIES, MANIFEST, Dataset, OpenStore, StoreSource, build
from tdmpc2.data.layout import DESCRIPTION
from tdmpc2.data.summary import Returns, describe
from tdmpc2.errors import UserError, nearest, require, unknown_name
from tdmpc2.tasks import TASKS, get_task
from tdmpc2.training.folder import RunFolder

DATASETS = "datasets"
"""Folder of data sets, below that of all results or an experiment's."""
_LISTED = 8


@dataclass(frozen=True)
class SourceRun:
    """A run whose replay a data set can be built from."""

    folder: RunFolder
    config: Config

    @property
    def task(self) -> str:
        """Name of its one task."""
        return self.config.tasks[0]

    @property
    def state(self) -> str:
        """How far it has come, in words; "done" where nothing is written to its replay any more."""
        status = self.folder.read_status()
        return "not begun" if status is None else status.state

    @property
    def store(self) -> StoreSource:
        """Its replay store."""
        return StoreSource(self.folder.replay, self.config.seed, finished=self.state == "done")


@dataclass(frozen=True)
class RunChoice:
    """The runs that were asked for, all of them done, and those that no data set can be built from."""

    runs: tuple[SourceRun, ...]
    """By task, then seed, size and label."""
    passed_over: Mapping[str, tuple[str, ...]]
    """Names of runs without replay for a data set, by the reason."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the runs' tasks, each once."""
        return tuple(dict.fromkeys(run.task for run in self.runs))

    @property
    def variants(self) -> Mapping[tuple[str, int], tuple[SourceRun, ...]]:
        """The runs of each task and seed of which there are several: of other sizes or labels."""
        groups: dict[tuple[str, int], list[SourceRun]] = {}
        for run in self.runs:
            groups.setdefault((run.task, run.config.seed), []).append(run)
        return {key: tuple(runs) for key, runs in groups.items() if len(runs) > 1}


def find_stores(
    sources: Path | Sequence[Path],
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
) -> list[StoreSource]:
    """Replay stores of finished single-task online runs; arguments and errors are those of `find_runs`."""
    return [run.store for run in find_runs(sources, tasks, seeds, sizes, labels).runs]


def find_runs(
    sources: Path | Sequence[Path],
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
) -> RunChoice:
    """Finished single-task online runs, whose replay a data set can be built from.

    Args:
        sources: folders of a sweep (with `runs`), of one run, or of runs.
        tasks: names of the tasks, all of which must be there, with each of the seeds where these are given too;
            default: all that are there, in the registry's order.
        seeds: seeds of the runs; default: all.
        sizes: model sizes of the runs; default: all.
        labels: labels of the runs, "" for none; default: all.

    Raises:
        UserError: a folder is not there or has no runs; no run is of a task, seed, size or label asked for; a run
            asked for is not done, or its replay is gone. Names all such runs.
    """
    sources = [sources] if isinstance(sources, Path) else list(sources)
    where = ", ".join(map(str, sources))
    runs: list[SourceRun] = []
    passed_over: dict[str, list[str]] = {}
    for path in dict.fromkeys(path.resolve() for source in sources for path in _run_paths(source)):
        folder = RunFolder(path)
        config = folder.read_config()
        if reason := _unsuitable(config):
            passed_over.setdefault(reason, []).append(path.name)
        else:
            runs.append(SourceRun(folder, config))
    if not runs:
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in passed_over.items())
        raise UserError(f"{where}: no single-task online run to take replay from ({reasons})")

    chosen = _choose(runs, "task", tasks, lambda run: run.task, where, runs)
    chosen = _choose(chosen, "seed", seeds, lambda run: run.config.seed, where, runs)
    chosen = _choose(chosen, "size", sizes, lambda run: run.config.model_size, where, runs)
    chosen = _choose(chosen, "label", labels, lambda run: run.config.label, where, runs)
    require(len(chosen) > 0, f"{where}: no run is of the tasks, seeds, sizes and labels asked for together")
    _require_complete(chosen, tasks, seeds, where)
    _require_done(chosen, where)
    place = {name: index for index, name in enumerate(TASKS if tasks is None else tasks)}
    chosen.sort(key=lambda run: (place[run.task], run.config.seed, run.config.model_size, run.config.label))
    return RunChoice(tuple(chosen), {reason: tuple(names) for reason, names in passed_over.items()})


def _run_paths(source: Path) -> list[Path]:
    """Folders of the runs at a source; those that hold no settings yet are no runs."""
    if not source.is_dir():
        beside = [path.name for path in source.parent.iterdir() if path.is_dir()] if source.parent.is_dir() else []
        match = nearest(source.name, beside)
        raise UserError(f"{source}: no such folder" + (f"; did you mean {source.parent / match}?" if match else ""))
    if (source / "config.yaml").is_file():
        return [source]
    runs = source / "runs" if (source / "runs").is_dir() else source
    found = sorted(path.parent for path in runs.glob("*/config.yaml"))
    require(len(found) > 0, f"{runs}: holds no runs (no RUN/config.yaml)")
    return found


def _unsuitable(config: Config) -> str:
    """Why a run has no replay for a data set; "" if it has."""
    if config.offline:
        return "offline, has no replay of its own"
    if len(config.tasks) > 1:
        return "of several tasks"
    if config.checkpoint is not None:
        return "finetuned, not learned from scratch"
    return "of pixels, data sets are of states" if config.obs != "state" else ""


def _choose(
    chosen: list[SourceRun],
    what: str,
    wanted: Sequence[Any] | None,
    value: Callable[[SourceRun], Any],
    where: str,
    runs: Sequence[SourceRun],
) -> list[SourceRun]:
    """The chosen ones whose value is wanted. Refused where none of all runs has one of the wanted values."""
    if wanted is None:
        return chosen
    there = list(dict.fromkeys(value(run) for run in runs))
    missing = [each for each in wanted if each not in there]
    if missing:
        match = nearest(str(missing[0]), map(str, there)) if isinstance(missing[0], str) else None
        known = ", ".join(repr(each) if each == "" else str(each) for each in there[:_LISTED])
        known += ", ..." if len(there) > _LISTED else ""
        hint = f"; nearest is {match}" if match else ""
        raise UserError(f"{where}: no run of {what} {_shortened(map(str, missing))}{hint} (there are: {known})")
    return [run for run in chosen if value(run) in wanted]


def _require_complete(
    chosen: Sequence[SourceRun], tasks: Sequence[str] | None, seeds: Sequence[int] | None, where: str
) -> None:
    """Refuse where a task that was asked for has no run left, or not with each seed that was asked for."""
    if tasks is None:
        return
    if seeds is None:
        there = {run.task for run in chosen}
        missing = [task for task in tasks if task not in there]
    else:
        pairs = {(run.task, run.config.seed) for run in chosen}
        missing = [f"{task} seed {seed}" for task in tasks for seed in seeds if (task, seed) not in pairs]
    require(
        not missing,
        f"{where}: no run asked for of {_shortened(missing)}; run them, or leave them out with --tasks or --seeds",
    )


def _require_done(chosen: Sequence[SourceRun], where: str) -> None:
    unfinished = [f"{run.folder.path.name} ({state})" for run in chosen if (state := run.state) != "done"]
    require(
        not unfinished,
        f"{where}: not done: {_shortened(unfinished, 40)}. Finish them, or leave them out by naming others with "
        "--tasks or --seeds",
    )
    gone = [str(run.folder.replay) for run in chosen if not (run.folder.replay / DESCRIPTION).is_file()]
    require(
        not gone,
        f"{where}: the replay of finished runs is gone: {_shortened(gone)}. Move it back there, or leave the runs out "
        "with --tasks or --seeds",
    )


def _shortened(names: Iterable[str], most: int = _LISTED) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def build_dataset(
    name: str, sources: Sequence[StoreSource], tasks: Sequence[str], folder: Path, copy: bool = False
) -> Dataset:
    """Build a data set, or take the one there is where it was built from the same stores, as they still are.

    Args:
        name: the data set's name, a folder's.
        sources: the stores.
        tasks: names of the tasks in the order of their ids.
        folder: the folder of data sets.
        copy: copy the stores into the data set's folder.

    Raises:
        UserError: as `tdmpc2.data.dataset.build`; another data set of this name exists.
    """
    target = folder / name
    if (target / MANIFEST).is_file():
        there = Dataset.read(target)
        if _same(there, sources, tasks, copy):
            there.check()
            return there
    return build(name, sources, tasks, folder, copy)


def _same(there: Dataset, sources: Sequence[StoreSource], tasks: Sequence[str], copy: bool) -> bool:
    """Whether a data set is what would be built. Of copies the place is not known, but how much they hold is."""
    if [task.name for task in there.tasks] != list(tasks):
        return False
    if copy != all(record.path.startswith(f"{COPIES}/") for record in there.stores):
        return False

    def contents(task: str, seed: int | None, held: Mapping[str, int], path: Path) -> tuple[str, ...]:
        counts = [held[name] for name in ("rows", "episodes", "rows_written")]
        return tuple(map(str, (task, seed, *counts, "" if copy else path.resolve())))

    recorded = [contents(r.task, r.seed, vars(r), there.store_folder(r)) for r in there.stores]
    opened = [(OpenStore.open(source.folder, horizon=1), source) for source in sources]
    wanted = [contents(store.layout.task, source.seed, store.held, source.folder) for store, source in opened]
    return recorded == wanted  # in order, on which it depends what a seed draws


def find_dataset(name_or_path: str, results_dir: Path | str, exp_name: str | None = None) -> Dataset:
    """A data set by its name or its folder.

    Args:
        name_or_path: a name, of `results_dir/exp_name/datasets` or else of `results_dir/datasets`; or a folder.
        results_dir: folder of all results.
        exp_name: the experiment whose data sets come first, if any.

    Raises:
        UserError: there is none; names the nearest, or where one of this name is. Or its manifest is damaged.
    """
    results = Path(results_dir)
    if "/" not in name_or_path and name_or_path not in ("", ".", ".."):
        for folder in ([results / exp_name] if exp_name else []) + [results]:
            if (folder / DATASETS / name_or_path / MANIFEST).is_file():
                return Dataset.read(folder / DATASETS / name_or_path)
    path = Path(name_or_path)
    if (path / MANIFEST).is_file():
        return Dataset.read(path)
    existing = dataset_folders(results)
    elsewhere = [folder for folder in existing if folder.name == path.name]
    if elsewhere:
        raise UserError(f"no data set {name_or_path}; there is {', '.join(map(str, elsewhere))}: give its path")
    if not existing:
        raise UserError(f"no data set {name_or_path}; {results} has none (`tdmpc2 dataset build` makes one)")
    raise unknown_name("data set", path.name, [folder.name for folder in existing], str(results))


def dataset_folders(results_dir: Path | str) -> list[Path]:
    """Folders of all data sets below a folder of results: its own, then those of its experiments."""
    results = Path(results_dir)
    places = (f"{DATASETS}/*/{MANIFEST}", f"*/{DATASETS}/*/{MANIFEST}")
    return [path.parent for place in places for path in sorted(results.glob(place))]


def store_faults(dataset: Dataset) -> list[str]:
    """What is wrong with each store that is gone or not as it was when the data set was built."""
    faults = []
    for record in dataset.stores:
        try:
            dataset.open_store(record)
        except UserError as error:
            faults.append(str(error))
    return faults


def task_seeds(dataset: Dataset, task: str) -> str:
    """Seeds of the runs whose stores a data set has of a task, e.g. `1 2 3`; `?` for one that is not known."""
    seeds = {record.seed for record in dataset.stores if record.task == task}
    return " ".join("?" if seed is None else str(seed) for seed in sorted(seeds, key=lambda s: (s is None, s)))


def task_rows(dataset: Dataset, returns: Returns | None = None) -> list[dict[str, Any]]:
    """One row a task, in the order of ids, for tables that people see.

    Args:
        dataset: the data set.
        returns: its `episode_returns`, where they are known already.

    Returns:
        id, task, domain, metric, seeds, stores, episodes, transitions (agent steps), env_steps, disk_bytes, and of the
        episodes' returns return_min, return_q25, return_median, return_q75, return_max and return_mean.

    Raises:
        UserError: a store is gone or has changed.
    """
    rows = []
    for task, summary in zip(dataset.tasks, describe(dataset, returns), strict=True):
        registered = get_task(task.name)
        own = {"id": task.id, "task": task.name, "domain": registered.domain, "metric": task.metric}
        own["seeds"] = task_seeds(dataset, task.name)
        row = {**own, **vars(summary)}
        row["env_steps"] = summary.transitions * registered.action_repeat
        rows.append({name: row[name] for name in ROW_FIELDS})
    return rows


ROW_FIELDS = (
    "id task domain metric seeds stores episodes transitions env_steps disk_bytes "
    "return_min return_q25 return_median return_q75 return_max return_mean"
).split()
"""Fields of `task_rows`, and columns of the CSV."""
