"""From a declaration to runs, and what each of them needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from tdmpc2.config import Config, make_settings
from tdmpc2.errors import UserError, nearest, unknown_name
from tdmpc2.sweeps.datasets import PlannedDataset, PlannedStore, existing_tasks
from tdmpc2.sweeps.declaration import Declaration, Group, Resources
from tdmpc2.sweeps.folder import Kind, PlanEntry
from tdmpc2.tasks import TASK_SETS
from tdmpc2.training.folder import RunFolder

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: its settings, what it gets to itself and what must be there before it starts."""

    config: Config
    resources: Resources
    needs: tuple[str, ...] = ()
    """Names of the runs that must be done."""
    dataset: PlannedDataset | None = None
    """The data set that is then built for it, where the sweep builds it."""

    @cached_property
    def name(self) -> str:
        """Name of the run's folder, unique in the sweep."""
        return self.config.run_name

    @cached_property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder.of(self.config)

    @cached_property
    def entry(self) -> PlanEntry:
        """The run's line in the plan."""
        return PlanEntry.of(self.config, float(self.resources.gpus))


def plan_runs(declaration: Declaration, results_dir: str = "results") -> tuple[PlannedRun, ...]:
    """All runs of a sweep, in the order in which they are to start, as far as what they need allows.

    Online runs first, then multi-task runs, then finetuning. Within these seed by seed, so that early results cover
    every task; within a seed first what others need, then the large models, then the long runs, so that no long run is
    left over when the others are done.

    Args:
        declaration: the sweep.
        results_dir: folder of all results.

    Raises:
        UserError: two runs would share a folder; a data set, or the tasks of one, would be of no run; a finetuned run
            has none, or several, to start from.
    """
    planner = _Planner(declaration, results_dir)
    for group in declaration.groups:  # in the order of what the runs need
        if group.kind == "online":
            planner.add_online(group)
        elif group.kind == "offline":
            planner.add_multitask(group)
        else:
            planner.add_finetuned(group)
    for name in declaration.datasets:
        planner.dataset(name)  # one that no block uses is checked too
    planned = list(planner.runs.values())
    needed = {name for run in planned for name in run.needs}
    planned.sort(
        key=lambda run: (
            KINDS.index(run.entry.kind) if run.needs else 0,
            run.config.seed,
            run.name not in needed,  # what others wait for comes before what nobody does
            -run.config.model_size,
            -run.entry.total_updates,
        )
    )
    return tuple(planned)


class _Planner:
    """Collects the runs of a declaration, group by group."""

    def __init__(self, declaration: Declaration, results_dir: str) -> None:
        self._declaration, self._results_dir = declaration, results_dir
        self._folder = Path(results_dir) / declaration.name / "datasets"
        self._datasets: dict[str, PlannedDataset] = {}
        self._declared_in: dict[str, str] = {}
        self._trained_on: dict[tuple[str, int, int], list[PlannedRun]] = {}
        """Multi-task runs by data set, size and seed."""
        self.runs: dict[str, PlannedRun] = {}

    def add_online(self, group: Group) -> None:
        """A run for each task, size and seed."""
        for seed in group.seeds:
            for size in group.sizes or ():
                for task in group.tasks or ():
                    self._add(group, {"task": task, "model_size": size, "seed": seed})

    def add_multitask(self, group: Group) -> None:
        """A run for each size and seed, on all tasks of the data set or those that are named."""
        declared = group.data in self._declaration.datasets
        dataset = self.dataset(group.data) if declared else None
        if dataset is not None:
            tasks = group.tasks or dataset.tasks
            for task in tasks:
                if task not in dataset.tasks:
                    raise unknown_name(f"task of data set {dataset.name}", task, dataset.tasks, f"{group.where}: tasks")
        else:
            tasks = group.tasks or self._existing_tasks(group)
        needs = () if dataset is None else tuple(store.run for store in dataset.stores)
        for seed in group.seeds:
            for size in group.sizes or ():
                values = {"task": name_tasks(tasks), "model_size": size, "seed": seed, "data": group.data}
                run = self._add(group, values, needs, dataset)
                self._trained_on.setdefault((group.data, size, seed), []).append(run)

    def add_finetuned(self, group: Group) -> None:
        """A run for each task, size and seed, from the multi-task run of that size and seed."""
        trained_on = dict.fromkeys(data for data, _, _ in self._trained_on)
        if group.data not in trained_on:
            raise unknown_name("data set of a multitask block", group.data, trained_on, f"{group.where}: from")
        sizes = group.sizes or tuple(dict.fromkeys(size for data, size, _ in self._trained_on if data == group.data))
        for seed in group.seeds:
            for size in sizes:
                start = self._start_of_finetuning(group, size, seed)
                for task in group.tasks or ():
                    values = {"task": task, "model_size": size, "seed": seed, "checkpoint": str(start.folder.path)}
                    self._add(group, values, (start.name,))

    def dataset(self, name: str) -> PlannedDataset:
        """A declared data set: the online runs that it is made of."""
        if name in self._datasets:
            return self._datasets[name]
        declared = self._declaration.datasets[name]
        runs = [run for run in self.runs.values() if run.entry.kind == "online" and run.config.obs == "state"]
        for field, asked, values in (
            ("tasks", declared.tasks, [run.config.task for run in runs]),
            ("sizes", declared.sizes, [run.config.model_size for run in runs]),
            ("seeds", declared.seeds, [run.config.seed for run in runs]),
            ("labels", declared.labels, [run.config.label for run in runs]),
        ):
            missing = [str(value) for value in asked or () if value not in values]
            if missing:
                raise UserError(f"{declared.where}: {field}: no group has online runs of {', '.join(missing)}")
        runs = [
            run
            for run in runs
            if (declared.sizes is None or run.config.model_size in declared.sizes)
            and (declared.seeds is None or run.config.seed in declared.seeds)
            and (declared.labels is None or run.config.label in declared.labels)
        ]
        tasks = declared.tasks or tuple(dict.fromkeys(run.config.task for run in runs))
        empty = [task for task in tasks if all(run.config.task != task for run in runs)]
        if empty or not tasks:
            raise UserError(
                f"{declared.where}: no run of these sizes, seeds and labels is of {', '.join(empty) or 'any task'}"
            )
        stores = [
            PlannedStore(run.name, run.folder.replay, run.config.task, run.config.seed)
            for task in tasks
            for run in runs
            if run.config.task == task
        ]
        self._datasets[name] = PlannedDataset(name, tasks, tuple(stores), self._folder)
        return self._datasets[name]

    def _existing_tasks(self, group: Group) -> tuple[str, ...]:
        """The tasks of a data set that is not declared, where the block does not name its own."""
        try:
            return existing_tasks(group.data, self._results_dir, self._declaration.name)
        except UserError as error:
            close = nearest(group.data, self._declaration.datasets)
            hint = f"; did you mean {close!r}, which is declared?" if close else ""
            raise UserError(f"{group.where}: data: {error}{hint}") from None

    def _start_of_finetuning(self, group: Group, size: int, seed: int) -> PlannedRun:
        by_seed = {key[2]: runs for key, runs in self._trained_on.items() if key[:2] == (group.data, size)}
        runs = by_seed.get(seed) or (next(iter(by_seed.values())) if len(by_seed) == 1 else [])
        if not runs:
            raise UserError(f"{group.where}: from: no multi-task run on {group.data} has size {size} and seed {seed}")
        if len(runs) > 1:
            names = " and ".join(run.name for run in runs)
            raise UserError(
                f"{group.where}: from: {names} are both on {group.data}; declare a data set for each under its own name"
            )
        return runs[0]

    def _add(
        self,
        group: Group,
        values: Mapping[str, Any],
        needs: tuple[str, ...] = (),
        dataset: PlannedDataset | None = None,
    ) -> PlannedRun:
        chosen = {
            "results_dir": self._results_dir,
            "exp_name": self._declaration.name,
            "threads": group.resources.cpus,
        }
        if group.resources.gpus == 0 and group.overrides.get("device", "auto") == "auto":
            chosen["device"] = "cpu"  # or every run of the machine would find the GPU and take it
        config = make_settings(Config, {**group.overrides, **chosen, **values}, where=group.where)
        run = PlannedRun(config, group.resources, needs, dataset)
        if run.name in self.runs:
            blocks = dict.fromkeys((self._declared_in[run.name], group.where))
            raise UserError(
                f"{' and '.join(blocks)}: run {run.name} is declared twice; "
                "runs of the same task, size and seed need different overrides.label"
            )
        self._declared_in[run.name] = group.where
        self.runs[run.name] = run
        return run


def name_tasks(tasks: tuple[str, ...]) -> str:
    """The shortest word for a list of tasks: a task set's name where it is exactly that, in its order."""
    return next((name for name, members in TASK_SETS.items() if members == tasks), ",".join(tasks))
