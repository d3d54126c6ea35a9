"""Files kept on disk under what they are a copy of: whole or absent, bounded, shared by processes."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Hashable
from pathlib import Path

from piggyback.errors import InputError
from piggyback.taskfile.disk import write_whole

logger = logging.getLogger(__name__)

LARGEST = 10 << 30
"""Bytes that a cache keeps."""
ABANDONED_S = 3600
"""Age from which a hidden file is no longer one that is being written: its process died."""


class FileCache:
    """A folder of files by key, at most ``largest`` bytes together; the least recently used goes first.

    Several processes and threads may use one folder. A file appears under its name when it is whole, and
    ends with its digest, so that one which a broken disk cut short is noticed and fetched anew.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = FileCache(folder)
    ...     cache.put(("s3://bucket/signs", "v1"), b"...")
    ...     cache.get(("s3://bucket/signs", "v1")), cache.get(("s3://bucket/signs", "v2"))
    (b'...', None)
    """

    def __init__(self, folder: str | os.PathLike[str], largest: int = LARGEST) -> None:
        if largest < 1:
            raise InputError(f"cache size: expected at least 1 byte, found {largest}")
        self._folder = Path(folder)
        self._largest = largest

    def get(self, key: Hashable) -> bytes | None:
        """Return the bytes kept under ``key``; None if there are none."""
        path = self._path(key)
        try:
            held = path.read_bytes()
            os.utime(path)  # used now
        except OSError:
            return None  # absent, or of no use: it is fetched anew
        data, digest = held[:-_DIGEST], held[-_DIGEST:]
        if hashlib.sha256(data).digest() == digest:
            return data
        logger.warning("%s: damaged; it is fetched anew", path)
        path.unlink(missing_ok=True)
        return None

    def put(self, key: Hashable, data: bytes) -> None:
        """Keep ``data`` under ``key``. A disk that is full or gone is logged: the cache is a convenience."""
        path = self._path(key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(path, data + hashlib.sha256(data).digest())
            self._make_room(path)
        except OSError as error:
            logger.warning(
                "%s: cannot be kept (%s); it is fetched again next time", path, error.strerror
            )

    def _path(self, key: Hashable) -> Path:
        return self._folder / hashlib.sha256(repr(key).encode()).hexdigest()

    def _make_room(self, newest: Path) -> None:
        """Delete the least recently used files beyond the limit, never the newest."""
        files, long_ago = [], time.time_ns() - ABANDONED_S * 10**9
        for path in self._folder.iterdir():
            try:
                found = path.stat()
            except FileNotFoundError:
                continue  # another process made room
            if not path.name.startswith("."):
                files.append((found.st_mtime_ns, path, found.st_size))
            elif found.st_mtime_ns < long_ago:
                path.unlink(missing_ok=True)
        total = sum(size for _, _, size in files)
        for _, path, size in sorted(files):
            if total <= self._largest:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size


_DIGEST = hashlib.sha256().digest_size
