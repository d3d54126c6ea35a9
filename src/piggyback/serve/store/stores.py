"""Where task files lie: a folder here; ``remote.py`` has the one for URLs."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Protocol

from piggyback.errors import UnavailableError, UnknownTaskError
from piggyback.taskfile.disk import read_whole, replace_whole
from piggyback.taskfile.task import check_name

SUFFIX = ".safetensors"
"""A task's file is NAME.safetensors, not in a folder below."""
SETTLE_S = 2.0
"""Seconds for which a file that changed is distrusted: the coarsest clock of a common file system."""
OLD_S = 86400.0
"""Seconds after which a file's own time says that it has settled; clocks differ, but not by a day."""

Stamp = Hashable
"""Changes when a file does: equal stamps of a name, equal content. Never None."""


class Store(Protocol):
    """Task files by task name. Its methods may be called from several threads."""

    place: str
    """Where it is, for messages."""

    def list(self) -> dict[str, Stamp]:
        """Return the stamp of every task file, by task name.

        A name that could not be a task's may be among them. Raises UnavailableError where the place cannot be
        listed now.
        """

    def read(self, name: str) -> bytes:
        """Return a whole file, as it was at one moment or as a mixture that its checksum gives away.

        Raises UnknownTaskError where it is gone, UnavailableError where the place is, TaskFileError for what is
        plainly no task file.
        """

    def write(self, name: str, data: bytes) -> None:
        """Replace a file at once, or raise UnavailableError and change nothing."""

    def delete(self, name: str) -> None:
        """Delete a file; raises UnknownTaskError where it is gone, UnavailableError where it cannot be deleted."""


def open_store(place: str | os.PathLike[str]) -> Store:
    """Return the store at ``place``: a folder, or a URL that fsspec knows.

    >>> open_store("tasks").place == str(Path("tasks").absolute())
    True
    """
    if isinstance(place, str) and "://" in place:
        from piggyback.serve.store.remote import open_remote

        return open_remote(place)
    return LocalStore(place)


class LocalStore:
    """The task files of one folder. Links to files are followed when read, and replaced when written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = LocalStore(folder)
    ...     store.write("signs", b"...")
    ...     list(store.list()), store.read("signs")
    (['signs'], b'...')
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder).absolute()  # stays when the working directory changes
        self.place = str(self._folder)
        self._device: int | None = None
        self._since: dict[str, tuple[Stamp, float]] = {}
        self._looks = itertools.count()

    def list(self) -> dict[str, Stamp]:
        """Return a stamp by name, at the cost of one ``stat`` a file.

        Two writes within one tick of the file system's clock can leave the same size and times behind. So a file
        that was not seen unchanged for SETTLE_S seconds gets a new stamp at every look.
        """
        begun, wall, look = time.monotonic(), time.time(), next(self._looks)
        found: dict[str, tuple[Stamp, float]] = {}
        try:
            device = self._folder.stat().st_dev
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    name = entry.name.removesuffix(SUFFIX)
                    if name == entry.name or name.startswith(".") or not name:
                        continue  # hidden: a file that is being written, or what a file manager left
                    try:
                        found[name] = _look(entry)
                    except FileNotFoundError:
                        if entry.is_symlink():  # else it was deleted meanwhile
                            found[name] = "leads nowhere", wall
                    except OSError as error:
                        found[name] = error.errno, wall
        except OSError as error:
            raise UnavailableError(
                f"tasks directory {self.place}: cannot be listed ({error.strerror}); bring it back"
            ) from error
        if found:
            self._device = device
        elif self._device not in (None, device):
            raise _unmounted(f"tasks directory {self.place}")
        ended, before, stamps = time.monotonic(), self._since, {}
        self._since = {}
        for name, (stamp, changed) in found.items():
            known, since = before.get(name, (None, ended))
            self._since[name] = (stamp, since if known == stamp else ended)
            settled = begun - self._since[name][1] >= SETTLE_S or wall - changed > OLD_S
            stamps[name] = stamp if settled else (stamp, look)
        return stamps

    def read(self, name: str) -> bytes:
        """Return a whole file; what is no task file and large is refused unread."""
        path = self._path(name)
        try:
            return read_whole(path)
        except FileNotFoundError as error:
            if path.is_symlink():
                raise UnavailableError(
                    f"{path.name}: a link to a file that is not there; bring it back"
                ) from error
            raise self._gone(name) from error
        except OSError as error:
            raise UnavailableError(f"{path.name}: cannot be read ({error.strerror})") from error

    def write(self, name: str, data: bytes) -> None:
        """Replace a file at once, synced to the disk."""
        path = self._path(name)
        self._check_there()
        try:
            replace_whole(path, data)
        except OSError as error:
            raise UnavailableError(
                f"{path.name}: {len(data)} bytes cannot be written ({error.strerror}); nothing was changed"
            ) from error

    def delete(self, name: str) -> None:
        """Delete a file; of a link only the link."""
        path = self._path(name)
        try:
            path.unlink()
        except FileNotFoundError as error:
            raise self._gone(name) from error
        except OSError as error:
            raise UnavailableError(f"{path.name}: cannot be deleted ({error.strerror})") from error

    def _path(self, name: str) -> Path:
        return self._folder / f"{check_name(name)}{SUFFIX}"

    def _gone(self, name: str) -> UnavailableError | UnknownTaskError:
        """What to raise for a file that is not there: it is known to be gone only where its folder is not."""
        try:
            self._check_there()
        except UnavailableError as error:
            return error
        return UnknownTaskError(f"unknown task {name!r}: there is no {name}{SUFFIX}")

    def _check_there(self) -> None:
        """Raises UnavailableError, without the place: the message reaches those who ask a server."""
        try:
            device = self._folder.stat().st_dev
        except OSError as error:
            raise UnavailableError(
                f"the tasks directory cannot be read ({error.strerror}); bring it back"
            ) from error
        if self._device not in (None, device):
            raise _unmounted("the tasks directory")


def _unmounted(what: str) -> UnavailableError:
    return UnavailableError(f"{what}: on another disk than its files were; mount that one again")


def _look(entry: os.DirEntry[str]) -> tuple[Stamp, float]:
    """The stamp of what an entry leads to, and when that changed, in seconds."""
    found = entry.stat()
    stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return stamp, max(found.st_mtime, found.st_ctime)
