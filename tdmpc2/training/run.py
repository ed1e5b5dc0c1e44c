"""A run from its config to its folder: new, resumed or already done."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing

from tdmpc2.agent.execution import choose_device, choose_execution
from tdmpc2.config import Config
from tdmpc2.data.dataset import MANIFEST
from tdmpc2.data.files import disk_full_is_user_error
from tdmpc2.errors import require
from tdmpc2.own_tasks import load_tasks_file
from tdmpc2.training.distributed import Team, join_team
from tdmpc2.training.divergence import DivergedError
from tdmpc2.training.finetune import check_finetuning
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.logs import check_wandb
from tdmpc2.training.offline import OfflineTraining, check_offline, open_data
from tdmpc2.training.online import OnlineTraining, check_trainable
from tdmpc2.training.progress import RunProgress
from tdmpc2.training.runtime import Stopped, StopRequest, prepare_process, stop_on_signals

__all__ = ["DivergedError", "train"]


def train(
    config: Config,
    show_progress: bool = True,
    stop: StopRequest | None = None,
    saved: Callable[[], None] | None = None,
) -> RunFolder:
    """Train one run to its end; the same call again resumes it, and does nothing once it is done.

    Started by torchrun, an offline run is trained by several processes, each with a part of every batch.

    Args:
        config: the run's settings, which decide its folder.
        show_progress: whether to write to the terminal.
        stop: set from elsewhere to stop the run between two steps; SIGTERM and Ctrl-C do so as well.
        saved: called after each checkpoint, once it is on disk for good.

    Returns:
        the run's folder.

    Raises:
        UserError: bad settings or data; another process is on the folder, or it holds a run with other settings or a
            damaged checkpoint; the disk is full.
        Stopped: a stop was requested; the run is checkpointed and the same call goes on with it. In the processes that
            torchrun started besides the first: that one has stopped or failed.
        Exception: whatever else went wrong; the folder's status says what.
    """
    if config.tasks_file is not None:  # in a process of its own, such as a sweep's, the settings alone have arrived
        load_tasks_file(config.tasks_file)
    with join_team() as team:
        folder = RunFolder.of(config)
        with disk_full_is_user_error(folder.path, "writing the run's records"):
            try:
                if _is_done(config, folder, team):
                    return folder
                with stop_on_signals(stop) as request:
                    prepare_process(config.threads, team.local_size)
                    _train(config, folder, request, show_progress, team, saved)
            finally:
                folder.release()
    return folder


def _is_done(config: Config, folder: RunFolder, team: Team) -> bool:
    """Check the run and claim its folder, in the leading process; whether there is nothing to do."""
    fault: Exception | None = None
    done = False
    if team.leads:
        try:
            _check(config, folder, team)
            folder.claim(config)
            status = folder.read_status()
            done = status is not None and status.state == "done"
            if config.offline and not folder.data_manifest.exists():
                _keep_manifest(config, folder)
        except Exception as error:  # raised below, once the others know
            fault = error
    if team.any(fault is not None):
        raise Stopped if fault is None else fault
    return team.any(done)


def _check(config: Config, folder: RunFolder, team: Team) -> None:
    if config.offline:
        check_offline(config, team.size)
    else:
        require(team.size == 1, f"online training runs in one process, not {team.size}; start it without torchrun")
        check_trainable(config)
        if config.checkpoint is not None and not folder.newest_checkpoint().exists():
            check_finetuning(config)
    if config.wandb:
        check_wandb()
    if not folder.config_file.exists():  # what cannot be had must not leave a folder behind
        choose_execution(config, choose_device(team.device(config.device)))


def _keep_manifest(config: Config, folder: RunFolder) -> None:
    """Keep what the run learned from beside it, in case the data set is deleted."""
    temporary = folder.data_manifest.with_name(f".{folder.data_manifest.name}.tmp")
    shutil.copyfile(open_data(config).folder / MANIFEST, temporary)
    temporary.replace(folder.data_manifest)


def _train(
    config: Config,
    folder: RunFolder,
    stop: StopRequest,
    show_progress: bool,
    team: Team,
    saved: Callable[[], None] | None,
) -> None:
    progress = RunProgress(folder, config, show_progress and team.leads, record=team.leads)
    try:
        training: OnlineTraining | OfflineTraining
        if config.offline:
            training = OfflineTraining(config, folder, stop, progress, team, saved=saved)
        else:
            training = OnlineTraining(config, folder, stop, progress, saved=saved)
        with closing(training):
            training.run()
    except (Stopped, KeyboardInterrupt):
        progress.finish("interrupted", "stopped on request")
        raise
    except BaseException as error:
        progress.finish("failed", str(error) or type(error).__name__)
        raise
    progress.finish("done")
