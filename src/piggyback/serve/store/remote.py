"""Task files behind a URL that fsspec knows (s3://, gs://, hf://, ...), each fetched once and kept on disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
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
from piggyback.serve.store.stores import SUFFIX, LocalStore, Stamp, Store
from piggyback.taskfile.task import check_name

CONTENT_MARKS = (
    "ETag", "etag", "checksum", "md5Hash", "content_md5", "crc32c", "sha256", "blob_id", "hex", "sha",
    "VersionId", "version_id", "generation",
)  # fmt: skip
"""What file systems call a mark of a file's content or version; the first ones that are there are taken."""
TIME_MARKS = (
    "LastModified",
    "last_modified",
    "Last-Modified",
    "updated",
    "modified",
    "mtime",
    "created",
)
"""What they call the time of a change: taken where no content mark is there."""
TRIES = 3
"""Reads of a file that is replaced while it is read."""


def open_remote(url: str, cache_dir: str | os.PathLike[str] | None = None) -> Store:
    """Return the store at ``url``; its files are cached in ``cache_dir`` (the user's cache directory).

    ``file://`` is a folder and needs no cache. Credentials come from where the protocol's package
    looks for them (environment, profile); what the URL has of them appears in no message. Raises
    InputError for a protocol that does not exist, MissingExtraError where its package is missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     store = open_remote("memory://example/tasks", cache)
    ...     store.write("signs", b"...")
    ...     list(store.list()), store.read("signs")
    (['signs'], b'...')
    """
    protocol, _, path = url.partition("://")
    if not protocol or not path:
        raise InputError(f"{place_of(url)!r}: expected a URL such as s3://bucket/tasks")
    if protocol in ("file", "local"):
        return LocalStore(unquote(path))
    require("fsspec", "ray")
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    try:
        system, root = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        package = known_implementations.get(protocol, {"class": protocol})["class"].split(".")[0]
        advice = "" if package == "fsspec" else f"; run: pip install {package}"
        raise MissingExtraError(
            f"{protocol}:// needs a package that is not installed ({_one_line(error)}){advice}"
        ) from error
    except ValueError as error:
        if protocol in known_implementations:
            raise InputError(f"{place_of(url)}: {Secrets(url).hidden_in(error)}") from None
        raise InputError(
            f"{place_of(url)}: {protocol}:// is unknown; expected s3://, gs://, hf:// or another that fsspec has"
        ) from None
    except Exception as error:  # noqa: BLE001 - some connect at once, and fail in their own ways
        raise _unavailable(
            place_of(url), "cannot be reached", Secrets(url).hidden_in(error)
        ) from None
    if cache_dir is None:
        home = os.environ.get("PIGGYBACK_CACHE") or Path.home() / ".cache" / "piggyback"
        cache_dir = Path(home) / "tasks"
    return RemoteStore(url, system, root, FileCache(cache_dir))


def place_of(url: str) -> str:
    """Return ``url`` without what may be secret: user, password, query, fragment.

    >>> place_of("s3://key:secret@bucket/tasks?token=1")
    's3://bucket/tasks'
    """
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    return re.sub(r"://[^/]*@", "://", bare)


class Secrets:
    """What of a URL must not be told."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        values = re.split(r"[&;=]", f"{parts.query}&{parts.fragment}")
        found = {user, password, *values}
        self._words = sorted({*found, *map(unquote, found)} - {""}, key=len, reverse=True)

    def hidden_in(self, error: BaseException) -> str:
        """Return what an error says, in one line, without the secrets of this URL or of any other."""
        text = _one_line(error)
        for word in self._words:
            if len(word) > 3:  # shorter ones are parts of ordinary words
                text = text.replace(word, "***")
        text = re.sub(r"(\w+://)[^/\s@]*@", r"\1", text)
        return _cut(
            re.sub(r"(\w+://[^\s?]*)\?[^\s'\")]*", r"\1", text)
        )  # cut last: half a secret is one


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
        self._secrets = Secrets(url)
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
                failure: PiggybackError = UnknownTaskError(
                    f"unknown task {name!r}: there is no {name}{SUFFIX} in {self.place}"
                )
            else:
                failure = _unavailable(self.place, problem, self._secrets.hidden_in(error))
            # Not "from error": its message and its traceback may hold credentials.
            raise failure from None


def _unavailable(place: str, problem: str, said: str) -> UnavailableError:
    return UnavailableError(
        f"{place}: {problem} ({said}); check the network, the name and the credentials"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _cut(text: str, longest: int = 200) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
