"""What must hold before any run of a sweep starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tdmpc2.errors import UserError, unknown_name
from tdmpc2.sweeps.datasets import existing_tasks
from tdmpc2.sweeps.planning import PlannedRun


def unavailable_tasks(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """Tasks of online runs that cannot be run here, each with the reason.

    Those of runs on data sets need not be run: such a run is evaluated on the tasks that can be.
    """
    from tdmpc2.envs.make import why_unavailable

    names = dict.fromkeys(task for run in runs if not run.config.offline for task in run.config.tasks)
    reasons = {name: why_unavailable(name) for name in names}
    return {name: reason for name, reason in reasons.items() if reason}


def why_not_runnable(runs: Sequence[PlannedRun], unavailable: Mapping[str, str]) -> dict[str, str]:
    """Runs that cannot be run here, each with the reason: its own task, or a run that it needs.

    Args:
        runs: all runs of a sweep, in the order of `plan_runs`.
        unavailable: `unavailable_tasks` of them.
    """
    reasons: dict[str, str] = {}
    for run in runs:
        lacking = [need for need in run.needs if need in reasons]
        if not run.config.offline and run.config.task in unavailable:
            reasons[run.name] = unavailable[run.config.task]
        elif lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            reasons[run.name] = f"needs {lacking[0]}{more}, which cannot be run"
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


def check_datasets(runs: Sequence[PlannedRun]) -> None:
    """Refuse runs on data sets that are not there, or were built from other runs than are declared now.

    Raises:
        UserError: names the data set.
    """
    for dataset in dict.fromkeys(run.dataset for run in runs):
        if dataset is not None:
            dataset.check()
    for run in runs:
        config = run.config
        if config.data is None or run.dataset is not None:
            continue
        try:
            tasks = existing_tasks(config.data, config.results_dir, config.exp_name)
        except UserError as error:
            raise UserError(f"run {run.name}: {error}") from None
        for task in config.tasks:
            if task not in tasks:
                raise unknown_name(f"task of data set {config.data}", task, tasks, f"run {run.name}")
