"""From a declaration to runs, and what must hold before any of them starts."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from functools import cached_property

from tdmpc2.config import Config, make_settings
from tdmpc2.errors import UserError
from tdmpc2.sweeps.declaration import Declaration, Resources
from tdmpc2.sweeps.folder import PlanEntry
from tdmpc2.tasks import get_task
from tdmpc2.training.folder import RunFolder


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: its settings and what it gets to itself."""

    config: Config
    resources: Resources

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
        config = self.config
        return PlanEntry(
            name=self.name,
            task=config.task,
            model_size=config.model_size,
            seed=config.seed,
            agent_steps=config.agent_steps,
            env_steps=config.agent_steps * get_task(config.tasks[0]).action_repeat,
        )


def plan_runs(declaration: Declaration, results_dir: str = "results") -> tuple[PlannedRun, ...]:
    """All runs of a sweep, in the order in which they are to start.

    Seed by seed, so that early results cover every task; within a seed the large models first, then the long runs, so
    that no long run is left over when the others are done.

    Args:
        declaration: the sweep.
        results_dir: folder of all results.

    Raises:
        UserError: two runs would share a folder; names them.
    """
    runs: dict[str, tuple[PlannedRun, str]] = {}
    for group in declaration.groups:
        chosen = {"results_dir": results_dir, "exp_name": declaration.name, "threads": group.resources.cpus}
        if group.resources.gpus == 0 and group.overrides.get("device", "auto") == "auto":
            chosen["device"] = "cpu"  # or every run of the machine would find the GPU and take it
        for seed in group.seeds:
            for size in group.sizes:
                for task in group.tasks:
                    values = {**group.overrides, **chosen, "task": task, "model_size": size, "seed": seed}
                    run = PlannedRun(make_settings(Config, values, where=group.where), group.resources)
                    if run.name in runs:
                        blocks = dict.fromkeys((runs[run.name][1], group.where))
                        raise UserError(
                            f"{' and '.join(blocks)}: run {run.name} is declared twice; "
                            "runs of the same task, size and seed need different overrides.label"
                        )
                    runs[run.name] = (run, group.where)
    planned = [run for run, _ in runs.values()]
    planned.sort(key=lambda run: (run.config.seed, -run.config.model_size, -run.entry.agent_steps))
    return tuple(planned)


def unavailable_tasks(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """Tasks that cannot be run here, each with the reason."""
    from tdmpc2.envs.make import BACKENDS

    reasons = {}
    for name in dict.fromkeys(task for run in runs for task in run.config.tasks):
        domain = get_task(name).domain
        if domain not in BACKENDS:
            reasons[name] = f"domain {domain} cannot be run by this version"
        elif importlib.util.find_spec(BACKENDS[domain].package) is None:
            reasons[name] = f"domain {domain} needs the Python package {BACKENDS[domain].package}"
    return reasons


def changed_settings(run: PlannedRun) -> str | None:
    """How the run that its folder holds differs from the planned one; None where it does not, or there is none.

    Raises:
        UserError: the folder's settings are damaged; names the file.
    """
    status = run.folder.read_status()
    if not run.folder.config_file.exists() or (status is not None and status.digest == run.config.digest()):
        return None
    there, now = run.folder.read_config().identity(), run.config.identity()
    changes = [f"{key}={there.get(key)} there, {key}={now[key]} now" for key in now if there.get(key) != now[key]]
    return "; ".join(changes) or None


def check_settings(runs: Sequence[PlannedRun]) -> None:
    """Refuse runs whose folders hold runs with other settings.

    Raises:
        UserError: names the runs and the settings.
    """
    changed = {run: changes for run in runs if (changes := changed_settings(run))}
    if changed:
        shown = [f"  {run.folder.path}: {changes}" for run, changes in list(changed.items())[:5]]
        more = [f"  and {len(changed) - 5} more"] if len(changed) > 5 else []
        raise UserError(
            "\n".join([f"{len(changed)} run(s) exist with other settings; nothing was started:", *shown, *more])
            + "\nUse the old settings to resume them, or give the new runs a label (overrides.label), "
            "or the sweep another name or --results folder"
        )
