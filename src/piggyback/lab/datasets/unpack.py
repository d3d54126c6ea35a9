"""``<root>/<name>.tar`` to a folder: beside it, or in the user's cache where that cannot be written."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from piggyback.errors import DataError
from piggyback.taskfile.disk import user_cache


def unpacked(packed: Path, names: Sequence[str]) -> Path:
    """Return the folder of the set in ``packed``, unpacked now if it has not been.

    The archive holds one of ``names`` at its top, or the set's own files. Raises DataError for an archive that
    is damaged, holds anything but folders and files, or would write outside its folder.
    """
    target = _target(packed)
    if target.is_dir():
        return target
    partial = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _extract(packed, partial)
        tops = [partial / name for name in names if (partial / name).is_dir()]
        _rename(tops[0] if tops else partial, target)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{packed}: cannot be unpacked ({error}); get it again") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{packed}: cannot be unpacked to {target.parent} ({reason}); make room there, or set PIGGYBACK_CACHE"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def writable(folder: Path) -> bool:
    """Return whether the folder may be written to; one that is marked read-only may not, not even by root."""
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _target(packed: Path) -> Path:
    if writable(packed.parent):
        return packed.with_suffix("")
    held = packed.stat()
    # Another archive of the same name gets another folder.
    key = hashlib.sha256(f"{packed.resolve()} {held.st_size} {held.st_mtime_ns}".encode())
    return user_cache() / "data" / f"{packed.stem}-{key.hexdigest()[:12]}"


def _extract(packed: Path, folder: Path) -> None:
    # "r:": uncompressed, so it cannot grow; a file that claims more than the archive has is an error.
    with tarfile.open(packed, "r:") as archive:
        for member in archive.getmembers():
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise DataError(f"{packed}: {member.name!r} is not a plain file or folder; refused")
        archive.extractall(folder, filter="data")


def _rename(source: Path, target: Path) -> None:
    """Atomically; another process that was faster has made the same folder."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise
