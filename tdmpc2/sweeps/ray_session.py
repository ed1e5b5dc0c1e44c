"""Ray for one sweep: started on this machine and heard on it alone, or a cluster that is connected to."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any, TextIO

import psutil

from tdmpc2.errors import UserError

OBJECT_STORE_BYTES = 100 * 2**20
"""Only settings and outcomes pass through Ray, so its store of objects is near the smallest that it accepts."""
CONNECT_SECONDS = 10.0
END_SECONDS = 5.0
"""How long a process that is killed may take to end."""
LONGEST_TEMPORARY_FOLDER = 40
"""Ray's sockets lie in its temporary folder, and the path of a socket is short: 107 characters."""
PREFIX = "ray-"
_LOCK = "driver.lock"
_OPTIONS: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


class EmbeddedRay:
    """Ray on this machine, for this process alone.

    Args:
        cores: CPU cores that it gives out.

    Raises:
        UserError: it could not be started.
        KeyboardInterrupt: a signal came while it started.
    """

    def __init__(self, cores: int) -> None:
        # Every port of Ray's opens only to a token that this sweep's processes alone know.
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        ray = import_ray()
        import ray._private.ray_constants as constants

        self._ray = ray
        # Ray takes the machine's address instead of the loopback one, which it is told here to do without: what it
        # listens on is then on 127.0.0.1 alone. This switch is its own, for systems whose firewall asks the user.
        clusters, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
        os.environ[constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that Ray starts
        try:
            self._begin(cores)
        except Exception:  # where the machine is too busy to start it within half a minute, above all
            try:
                self._begin(cores)
            except Exception as error:
                raise UserError(
                    f"Ray could not be started on this machine, twice ({error}). It gives up where the machine is too "
                    "busy to start it within half a minute: try again later, or use --executor serial"
                ) from error
        finally:
            constants.ENABLE_RAY_CLUSTER = clusters
            del os.environ[constants.ENABLE_RAY_CLUSTERS_ENV_VAR]

    def _begin(self, cores: int) -> None:
        """Start Ray in a folder of its own, or leave nothing behind."""
        self._folder, self._lock = _temporary_folder()
        try:
            self._ray.init(
                address="local",
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(self._folder),
                **_OPTIONS,
            )
        except SystemExit as error:  # what Ray makes of a SIGTERM while it starts
            self.close()
            raise KeyboardInterrupt from error
        except BaseException:
            self.close()
            raise

    def lost(self) -> list[str]:
        """Names of Ray's own processes that have ended although nobody asked them to: without one it runs no more."""
        node = self._ray._private.worker._global_node
        return sorted({name for name, _ in node.dead_processes()} & {"raylet", "gcs_server"})

    def close(self) -> None:
        """End Ray, with what still runs."""
        self._ray.shutdown()
        _remove(self._folder)
        self._lock.close()


class ConnectedRay:
    """A cluster that runs already.

    Args:
        address: HOST:PORT of its head, or `auto` for the one that this machine is a node of.

    Raises:
        UserError: it cannot be reached, or refuses the token.
    """

    def __init__(self, address: str) -> None:
        _check_reachable(address)
        if address.startswith("ray://"):
            raise UserError(
                f"--address {address}: give the head's HOST:PORT, on a machine that is a node of the cluster "
                "(`ray start --address=HOST:PORT --num-cpus=0` makes it one that gets no runs)"
            )
        self._ray = ray = import_ray()
        try:
            _check_token(address)
            ray.init(address=address, **_OPTIONS)
        except ray.exceptions.AuthenticationError:
            raise UserError(
                f"--address {address}: the cluster refuses this machine's token, or there is none. Copy the head's "
                "(`ray get-auth-token` there shows it) to ~/.ray/auth_token, or set RAY_AUTH_TOKEN_PATH to its file, "
                "and set RAY_AUTH_MODE=token"
            ) from None
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--address {address}: no Ray cluster can be joined there ({_whole_reason(error)}). "
                "This machine must be a node of it: `ray start --address=HOST:PORT --num-cpus=0`"
            ) from None

    @property
    def notices(self) -> list[str]:
        """What the user should know of the cluster's safety."""
        if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":  # set by Ray too, where it finds a token
            return []
        return [
            "this Ray cluster asks for no token: whoever reaches its ports can run commands on its machines "
            "(docs/cluster.md says how to start it with one)"
        ]

    def lost(self) -> list[str]:
        """As of an embedded one; a cluster mends itself, or its driver ends with its head."""
        return []

    def close(self) -> None:
        """Leave the cluster; the workers of this sweep end."""
        self._ray.shutdown()


def import_ray() -> Any:
    """Ray, set up: nothing is sent to its makers, and a run gets the GPUs that it asks for and no others."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # these are read when Ray is imported
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    import ray._private.worker
    import ray.exceptions

    # Ray would print its own account of every killed worker into the display, log_to_driver or not.
    ray._private.worker._worker_logs_enabled = False
    return ray


def _whole_reason(error: BaseException) -> str:
    """An error's message and that of what caused it."""
    cause = error.__cause__
    return str(error) if cause is None else f"{error}: {cause}"


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes.

    Raises:
        UserError: nothing listens there.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():  # `auto`, which Ray looks up
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no Ray cluster can be reached there ({error})") from None


def _check_token(address: str) -> None:
    """Show the head our token, once: Ray itself would do so for 20 s, and then tell of a failed connection.

    Raises:
        ray.exceptions.AuthenticationError: the head refuses it, or there is none.
    """
    import ray
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # it is there

    if not address.rpartition(":")[2].isdigit():  # `auto`, which Ray looks up
        return
    ensure_token_if_auth_enabled(create_token_if_missing=False)  # where one is asked for and missing, the client aborts
    try:
        GcsClient(address=address)
    except ray.exceptions.AuthenticationError:
        raise
    except ray.exceptions.RayError:  # whatever else there is with it, `ray.init` meets it too, and says more of it
        return


def _temporary_folder() -> tuple[Path, TextIO]:
    """A fresh folder for Ray's session with a short path, and the lock that tells that its driver lives.

    Folders whose drivers were killed are removed.
    """
    default = tempfile.gettempdir()
    short = len(default) <= LONGEST_TEMPORARY_FOLDER or not os.access("/tmp", os.W_OK)
    parent = Path(default if short else "/tmp")
    for left in parent.glob(f"{PREFIX}*/{_LOCK}"):
        _remove_if_dead(left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = (folder / f"{_LOCK}.new").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / f"{_LOCK}.new").rename(folder / _LOCK)  # locked from the first moment on
    return folder, lock


def _remove_if_dead(lock: Path) -> None:
    """Remove Ray's folder unless the driver that made it lives, or another user's did."""
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(lock.parent)
    except OSError:  # held, of another user, or gone meanwhile
        return


def _remove(folder: Path) -> None:
    """Remove the folder of a session that is over, its lock last, with the processes that are left of the session."""
    _end_processes(folder)
    for entry in [entry for entry in folder.iterdir() if entry.name != _LOCK]:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    if [entry.name for entry in folder.iterdir()] == [_LOCK]:
        shutil.rmtree(folder, ignore_errors=True)


def _end_processes(folder: Path) -> None:
    """End the processes of a session that is over, which Ray's own watching would end some seconds later.

    Until then they would make parts of its folder anew: those that were about to start make all of it.
    """
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.pid != os.getpid() and any(str(folder) in word for word in process.cmdline()):
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=END_SECONDS)
