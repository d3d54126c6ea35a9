"""Where task files are: a folder of this machine, or a URL that fsspec knows (s3://, gs://, hf://, ...)."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from piggyback.errors import (
    InputError,
    MissingExtraError,
    PiggybackError,
    UnavailableError,
    UnknownTaskError,
    require,
)
from piggyback.serve.store.file_cache import FileCache
from piggyback.taskfile.disk import user_cache, write_whole
from piggyback.taskfile.header import read_whole
from piggyback.taskfile.task import check_name

SUFFIX = ".safetensors"
"""A task's file is NAME.safetensors, not in a folder below."""
SETTLE_S = 2.0
"""Seconds that a file must stay as it is before its stamp counts: the coarsest clock of a common file system."""
OLD_S = 86400.0
"""Seconds after which a file's own time says that it has settled; clocks differ, but not by a day."""

CONTENT_MARKS = (
    "ETag", "etag", "checksum", "md5Hash", "content_md5", "crc32c", "sha256", "blob_id", "hex", "sha",
    "VersionId", "version_id", "generation",
)  # fmt: skip
"""What file systems call a mark of a file's content or version; the first ones that are there are taken."""
TIME_MARKS = (
    "LastModified", "last_modified", "Last-Modified", "updated", "modified", "mtime", "created",
)  # fmt: skip
"""What they call the time of a change: taken where no content mark is there."""
TRIES = 3
"""Reads of a file that is replaced while it is read."""

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
        plainly not a task file.
        """

    def write(self, name: str, data: bytes) -> None:
        """Replace a file at once, or raise UnavailableError and change nothing."""

    def delete(self, name: str) -> None:
        """Delete a file; raises UnknownTaskError where it is gone, UnavailableError where it cannot be deleted."""


def open_store(
    place: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None
) -> Store:
    """Return the store at ``place``: a folder, or a URL that fsspec knows.

    Files behind a URL are kept in ``cache_dir``, by default the user's cache directory; ``file://`` is a folder.
    Credentials come from where the protocol's package looks for them (environment, profile); what the URL has of them
    appears in no message. Raises InputError for a protocol that does not exist, MissingExtraError where its package is
    missing.

    >>> open_store("tasks").place == str(Path("tasks").absolute())
    True
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     store = open_store("memory://example/tasks", cache)
    ...     store.write("signs", b"...")
    ...     list(store.list()), store.read("signs")
    (['signs'], b'...')
    """
    if place == "":  # which pathlib takes for the working directory
        raise InputError("tasks_dir '': expected a folder or a URL")
    if not isinstance(place, str) or "://" not in place:
        return LocalStore(place)
    protocol, _, path = place.partition("://")
    if not protocol or not path:
        raise InputError(f"{place_of(place)!r}: expected a URL such as s3://bucket/tasks")
    if protocol in ("file", "local"):
        return LocalStore(unquote(path))
    system, root = _connect(place, protocol)
    if cache_dir is None:
        cache_dir = user_cache() / "tasks"
    return RemoteStore(place, system, root, FileCache(cache_dir))


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
        """Return a whole file; a large one that is not a task file is refused unread."""
        with self._telling(name, "cannot be read") as path:
            return read_whole(path)

    def write(self, name: str, data: bytes) -> None:
        """Replace a file at once, synced to the disk."""
        problem = f"{len(data)} bytes cannot be written and nothing was changed"
        with self._telling(name, problem) as path:
            self._check_there()
            write_whole(path, data, follow=False)

    def delete(self, name: str) -> None:
        """Delete a file; of a link only the link."""
        with self._telling(name, "cannot be deleted") as path:
            path.unlink()

    @contextmanager
    def _telling(self, name: str, problem: str) -> Iterator[Path]:
        """The path of a task's file; what goes wrong with it is one line.

        A file that is not there is known to be gone only where its folder is not.
        """
        path = self._path(name)
        try:
            yield path
        except FileNotFoundError as error:
            if path.is_symlink():
                raise UnavailableError(
                    f"{path.name}: a link to a file that is not there; bring it back"
                ) from error
            self._check_there()
            raise UnknownTaskError(f"unknown task {name!r}: there is no {path.name}") from error
        except OSError as error:
            raise UnavailableError(f"{path.name}: {problem} ({error.strerror})") from error

    def _path(self, name: str) -> Path:
        return self._folder / f"{check_name(name)}{SUFFIX}"

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


class RemoteStore:
    """Task files in a folder of an fsspec file system.

    Each file has a stamp: its size, and the file system's own mark of its content (ETag, checksum,
    version), else the time it was changed. A file system that gives neither cannot be watched: a
    replaced file of the same size would be served old for ever. So it is refused.

    A file that was fetched once under its present stamp is read from the disk, also while the network is gone.
    """

    def __init__(self, url: str, system: Any, root: str, cache: FileCache) -> None:
        self.place = place_of(url)
        self._system = system
        self._root = root.rstrip("/")
        self._cache = cache
        self._url = url
        self._listed: dict[str, Stamp] = {}

    def list(self) -> dict[str, Stamp]:
        """Return a stamp by name, at the cost of one listing.

        An object store cannot tell an empty folder from one that never was: both are unavailable.
        """
        with self._asking("cannot be listed"):
            self._system.invalidate_cache(self._root)
            entries = self._system.ls(self._root, detail=True)
        found: dict[str, Stamp] = {}
        for entry in entries:
            file = entry["name"].rstrip("/").rpartition("/")[2]
            name = file.removesuffix(SUFFIX)
            if entry.get("type") == "file" and name != file and name and not name.startswith("."):
                found[name] = self._stamp(file, entry)
        self._listed = found
        return dict(found)

    def read(self, name: str) -> bytes:
        """Return a whole file: the listed version if it is on disk, else the newest."""
        key = f"{self.place}/{check_name(name)}"
        stamp = self._listed.get(name)
        if stamp is not None and (data := self._cache.get((key, stamp))) is not None:
            return data
        for _ in range(TRIES):
            before = self._info(name)
            if (data := self._cache.get((key, before))) is not None:
                return data
            with self._asking(f"{name}{SUFFIX} cannot be read", name):
                data = bytes(self._system.cat_file(self._path(name)))
            # Only what did not change while it came is known to be what the stamp says.
            if self._info(name) == before:
                self._cache.put((key, before), data)
                return data
        raise UnavailableError(
            f"{self.place}: {name}{SUFFIX} is replaced again and again; ask again later"
        )

    def write(self, name: str, data: bytes) -> None:
        """Replace a file, as whole as the file system's own upload is: object stores' are."""
        with self._asking(f"{name}{SUFFIX} cannot be written"):
            self._system.pipe_file(self._path(name), data)
            self._system.invalidate_cache(self._root)
        self._forget(name)

    def delete(self, name: str) -> None:
        """Delete a file."""
        self._info(name)  # object stores delete what is not there without a word
        with self._asking(f"{name}{SUFFIX} cannot be deleted", name):
            self._system.rm_file(self._path(name))
            self._system.invalidate_cache(self._root)
        self._forget(name)

    def _forget(self, name: str) -> None:
        self._listed = {other: stamp for other, stamp in self._listed.items() if other != name}

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_name(name)}{SUFFIX}"

    def _info(self, name: str) -> Stamp:
        with self._asking(f"{name}{SUFFIX} cannot be looked at", name):
            self._system.invalidate_cache(self._root)
            entry = self._system.info(self._path(name))
        return self._stamp(f"{name}{SUFFIX}", entry)

    def _stamp(self, file: str, entry: Mapping[str, Any]) -> Stamp:
        for marks in (CONTENT_MARKS, TIME_MARKS):
            found = tuple(f"{m}={entry[m]}" for m in marks if entry.get(m) is not None)
            if found:
                return (entry.get("size"), *found)
        raise UnavailableError(
            f"{self.place}: {file} comes with neither a checksum nor a time, so a replaced file would "
            "not be noticed; copy the files to a folder or an object store"
        )

    @contextmanager
    def _asking(self, problem: str, name: str | None = None) -> Iterator[None]:
        """Turn whatever the file system raises into one line."""
        try:
            yield
        except PiggybackError:
            raise
        except Exception as error:  # noqa: BLE001 - every protocol's package has errors of its own
            if name is not None and isinstance(error, FileNotFoundError):
                # Without the place: the message reaches those who ask a server.
                failure: PiggybackError = UnknownTaskError(
                    f"unknown task {name!r}: there is no {name}{SUFFIX}"
                )
            else:
                failure = _unreachable(self.place, problem, without_secrets(error, self._url))
            # Not "from error": its message and its traceback may hold credentials.
            raise failure from None


def place_of(url: str) -> str:
    """Return ``url`` without what may be secret: user, password, query, fragment.

    >>> place_of("s3://key:secret@bucket/tasks?token=1")
    's3://bucket/tasks'
    """
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    return re.sub(r"://[^/]*@", "://", bare)


def without_secrets(error: BaseException, url: str) -> str:
    """Return what an error says, in one line of 200 characters, without the secrets of this URL or of any other.

    >>> without_secrets(ValueError("no login with s3cret at s3://me:s3cret@b"), "s3://me:s3cret@b")
    'ValueError: no login with *** at s3://b'
    """
    parts = urlsplit(url)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    found = {user, password, *re.split(r"[&;=]", f"{parts.query}&{parts.fragment}")}
    text = " ".join(f"{type(error).__name__}: {error}".split())
    for word in sorted({*found, *map(unquote, found)}, key=len, reverse=True):
        if len(word) > 3:  # shorter ones are parts of ordinary words
            text = text.replace(word, "***")
    text = re.sub(r"(\w+://)[^/\s@]*@", r"\1", text)
    text = re.sub(r"(\w+://[^\s?]*)\?[^\s'\")]*", r"\1", text)
    return text if len(text) <= 200 else f"{text[:197]}..."  # cut last: half a secret is one


def _connect(url: str, protocol: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    require("fsspec", "serve")
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    place, known = place_of(url), known_implementations.get(protocol)
    try:
        system, root = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        package = known["class"].split(".")[0] if known else protocol
        advice = "" if package == "fsspec" else f"; run: pip install {package}"
        raise MissingExtraError(
            f"{protocol}:// needs a package that is not installed ({without_secrets(error, url)}){advice}"
        ) from error
    except ValueError as error:
        said = f"{protocol}:// is unknown; expected s3://, gs://, hf:// or another that fsspec has"
        raise InputError(f"{place}: {without_secrets(error, url) if known else said}") from None
    except Exception as error:  # noqa: BLE001  some connect at once, and fail in their own ways
        raise _unreachable(place, "cannot be reached", without_secrets(error, url)) from None
    return system, root


def _unreachable(place: str, problem: str, said: str) -> UnavailableError:
    return UnavailableError(
        f"{place}: {problem} ({said}); check the network, the name and the credentials"
    )


def _unmounted(what: str) -> UnavailableError:
    return UnavailableError(f"{what}: on another disk than its files were; mount that one again")


def _look(entry: os.DirEntry[str]) -> tuple[Stamp, float]:
    """The stamp of what an entry leads to, and when that changed, in seconds."""
    found = entry.stat()
    stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return stamp, max(found.st_mtime, found.st_ctime)
