"""A run from its config to its folder: new, resumed or already done."""

from __future__ import annotations

from tdmpc2.agent.execution import choose_device, choose_execution
from tdmpc2.config import Config
from tdmpc2.data.files import disk_full_is_user_error
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.logs import check_wandb
from tdmpc2.training.online import DivergedError, OnlineTraining, check_trainable
from tdmpc2.training.progress import RunProgress
from tdmpc2.training.runtime import Stopped, StopRequest, prepare_process, stop_on_signals

__all__ = ["DivergedError", "train"]


def train(config: Config, show_progress: bool = True, stop: StopRequest | None = None) -> RunFolder:
    """Train one run to its end; the same call again resumes it, and does nothing once it is done.

    Args:
        config: the run's settings, which decide its folder.
        show_progress: whether to write to the terminal.
        stop: set from elsewhere to stop the run between two steps; SIGTERM and Ctrl-C do so as well.

    Returns:
        the run's folder.

    Raises:
        UserError: bad settings; another process is on the folder, or it holds a run with other settings or a damaged
            checkpoint; the disk is full.
        Stopped: a stop was requested; the run is checkpointed and the same call goes on with it.
        Exception: whatever else went wrong; the folder's status says what.
    """
    check_trainable(config)
    if config.wandb:
        check_wandb()
    folder = RunFolder.of(config)
    if not folder.config_file.exists():  # what cannot be had must not leave a folder behind
        choose_execution(config, choose_device(config.device))
    with disk_full_is_user_error(folder.path, "writing the run's records"):
        folder.claim(config)
        try:
            status = folder.read_status()
            if status is not None and status.state == "done":
                return folder
            with stop_on_signals(stop) as request:
                prepare_process(config.threads)
                _train(config, folder, request, show_progress)
        finally:
            folder.release()
    return folder


def _train(config: Config, folder: RunFolder, stop: StopRequest, show_progress: bool) -> None:
    progress = RunProgress(folder, config, show_progress)
    try:
        training = OnlineTraining(config, folder, stop, progress)
        try:
            training.run()
        finally:
            training.close()
    except (Stopped, KeyboardInterrupt):
        progress.finish("interrupted", "stopped on request")
        raise
    except BaseException as error:
        progress.finish("failed", str(error) or type(error).__name__)
        raise
    progress.finish("done")
