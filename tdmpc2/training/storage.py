"""Object storage by a URL: small named objects below a prefix, written whole, and tried again where the network fails.

Any fsspec URL will do (s3://, gs://, az://, file://). Credentials and endpoints come from where the storage's own tools
look for them, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL; nothing here writes them anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from tdmpc2.errors import UserError, require

ATTEMPTS = 5
"""Times that a request is made before it counts as failed."""
FIRST_PAUSE = 0.5
"""Seconds before the second of them; each pause is twice the one before."""
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
"""The packages that know the usual storages."""
S3_OPTIONS = {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}}}
"""s3fs and we try again; if the library below it did so too, an outage would be told of after minutes."""
DENIED = ("NoCredentialsError", "PartialCredentialsError", "ClientAuthenticationError", "DefaultCredentialsError")
"""What the packages call it when there are no credentials; these are no errors of the system."""

Result = TypeVar("Result")


class StorageError(Exception):
    """The storage cannot be reached, or refuses what is asked of it; the message says what and where."""


class StoredObject(NamedTuple):
    """An object as a listing shows it."""

    size: int
    """Bytes."""
    version: str
    """Changes with the content, by what the storage tells: its tag, or the time of writing."""


class Storage:
    """The objects below a URL. Its methods may be called from several threads.

    Args:
        url: an fsspec URL; what is below it belongs to us.

    Raises:
        UserError: not such a URL, or the package that it needs is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        protocol, _, place = self.url.partition("://")
        require(bool(place), f"storage {url!r}: not a URL; give one like s3://BUCKET/PREFIX")
        parts = urlsplit(self.url)
        require(
            "@" not in parts.netloc and not parts.query,
            f"storage: credentials do not belong into the URL ({protocol}://...); give them by the environment",
        )
        self._protocol = protocol

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.url,))

    @cached_property
    def _connection(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        try:
            # Others write here too, so a listing that was kept would be wrong.
            options = S3_OPTIONS if PACKAGES.get(self._protocol) == "s3fs" else {}
            system, root = url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True, **options)
        except ImportError as error:
            package = PACKAGES.get(self._protocol)
            hint = f"pip install {package}" if package else str(error)
            raise UserError(f"storage {self.url}: {self._protocol}:// needs a package more: {hint}") from None
        except ValueError as error:
            known = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "file"))
            raise UserError(f"storage {self.url}: {error}; known are {known} and others of fsspec") from None
        return system, root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._connection[1]}/{name}" if name else self._connection[1]

    @property
    def _is_local(self) -> bool:
        return self._protocol in ("file", "local")

    def below(self, name: str) -> Storage:
        """The storage of the objects whose names begin with `name/`."""
        return Storage(f"{self.url}/{name}")

    # --- objects

    def read(self, name: str) -> bytes | None:
        """An object's content; None where there is none of that name.

        Raises:
            StorageError: it cannot be read.
        """
        try:
            content: bytes = self._try("read", name, lambda system, path: system.cat_file(path))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write an object: who reads it gets the old content or the new one, whole.

        Raises:
            StorageError: it cannot be written.
        """

        def put(system: Any, path: str) -> None:
            if not self._is_local:
                system.pipe_file(path, content)
                return
            with _replacement(Path(path)) as temporary:
                temporary.write_bytes(content)

        self._try("write", name, put)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one of that name; whether it was written. Of several, one succeeds.

        Args:
            name: its name.
            content: its content, which must be unlike anybody else's.

        Raises:
            StorageError: it cannot be written.
        """

        def put(system: Any, path: str) -> bool:
            try:
                if self._is_local:
                    _link(Path(path), content)
                else:
                    system.pipe_file(path, content, mode="create")
            except FileExistsError:
                # An earlier attempt may have got through, with its answer lost on the way.
                return bool(system.cat_file(path) == content)
            return True

        return self._try("create", name, put)

    def upload(self, file: Path, name: str) -> int:
        """Write an object from a file; its size in bytes.

        Raises:
            StorageError: it cannot be written.
            OSError: the file cannot be read.
        """
        size = file.stat().st_size

        def put(system: Any, path: str) -> None:
            if not self._is_local:
                system.put_file(str(file), path)
                return
            with _replacement(Path(path)) as temporary:
                system.put_file(str(file), str(temporary))

        self._try("write", name, put)
        return size

    def download(self, name: str, file: Path) -> None:
        """Write an object to a file, in place of what is there, whole or not at all.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: it cannot be read.
            OSError: the disk is full.
        """
        with _replacement(file) as temporary:
            self._try("read", name, lambda system, path: system.get_file(path, str(temporary)))

    def find(self, prefix: str = "") -> dict[str, StoredObject]:
        """All objects whose names begin with `prefix/`, by their names.

        Raises:
            StorageError: they cannot be listed.
        """
        try:
            found = self._try("list", prefix, lambda system, path: system.find(path, detail=True))
        except FileNotFoundError:
            return {}
        start = len(self._connection[1].lstrip("/")) + 1
        objects = {}
        for path, detail in found.items():
            version = next((detail[key] for key in ("ETag", "etag", "mtime", "created") if key in detail), "")
            name = path.lstrip("/")[start:]
            if not _is_unfinished(name):
                objects[name] = StoredObject(int(detail["size"]), str(version))
        return objects

    def entries(self, prefix: str = "") -> tuple[list[str], list[str]]:
        """What follows `prefix/` in the objects' names up to the next slash: whole names, and beginnings of others.

        Raises:
            StorageError: they cannot be listed.
        """
        try:
            found = self._try("list", prefix, lambda system, path: system.ls(path, detail=True))
        except FileNotFoundError:
            return [], []
        names: dict[bool, list[str]] = {True: [], False: []}
        for entry in found:
            names[entry["type"] == "directory"].append(entry["name"].rstrip("/").rpartition("/")[2])
        return sorted(name for name in names[False] if not _is_unfinished(name)), sorted(names[True])

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are not there are left out.

        Raises:
            StorageError: they cannot be deleted.
        """
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._try("delete", name, lambda system, path: system.rm_file(path))

    # --- faults

    def check(self) -> None:
        """Write an object, read it and delete it.

        Raises:
            UserError: that does not work; says what is wrong.
        """
        name, content = f".probe-{uuid.uuid4().hex}", b"a test of reading and writing, to be deleted at once"
        try:
            self.write(name, content)
            same = self.read(name) == content
            self.delete([name])
        except StorageError as error:
            raise UserError(str(error)) from error
        require(same, f"storage {self.url}: what was written to it does not come back")

    def _try(self, doing: str, name: str, request: Callable[[Any, str], Result]) -> Result:
        """Make a request, again where that may help."""
        where = f"storage {self.url}: cannot {doing} {name or 'it'}"
        for attempt in range(ATTEMPTS):
            try:
                return request(self._connection[0], self._path(name))
            except (UserError, TypeError, AttributeError):  # the last two are faults of the program
                raise
            except FileNotFoundError as error:
                if doing in ("write", "create"):
                    raise StorageError(f"{where}: no such bucket or container ({_in_short(error)})") from error
                raise
            except PermissionError as error:
                raise StorageError(f"{where}: these credentials have no right to ({_in_short(error)})") from error
            except Exception as error:  # of whatever library; it is told below, or got over
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if type(error).__name__ in DENIED:
                    raise StorageError(f"{where}: there are no credentials ({_in_short(error)})") from error
                if attempt + 1 == ATTEMPTS:
                    raise StorageError(f"{where}, tried {ATTEMPTS} times: {_in_short(error)}") from error
            time.sleep(FIRST_PAUSE * 2**attempt)
        raise AssertionError("unreachable")


def _in_short(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _is_unfinished(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.startswith(".") and last.endswith(".tmp")


@contextlib.contextmanager
def _replacement(file: Path) -> Iterator[Path]:
    """A name to write to, which then takes the file's place in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _link(file: Path, content: bytes) -> None:
    """Make a file with this content, both in one step.

    Raises:
        FileExistsError: there is one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        temporary.write_bytes(content)
        os.link(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
