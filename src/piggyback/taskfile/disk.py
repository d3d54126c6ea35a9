"""Whole files or none: writing what replaces a file at once, errors that name the file, and where caches go."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from piggyback.errors import (
    BackboneMismatchError,
    CheckpointError,
    InputError,
    TaskFileError,
    check_is,
)

_LOCK_TRIES = 80
"""Tenths of a second for which a folder that is held is waited for."""


def write_whole(path: str | os.PathLike[str], data: bytes, *, follow: bool = True) -> None:
    """Write ``data`` to a new file beside ``path``, sync it, and give it that name.

    ``follow=False`` puts the file in the place of a link instead of where it leads. Raises OSError, and then what was
    at ``path`` is untouched and nothing is left beside it.
    """
    target = Path(os.path.realpath(path) if follow else path)
    # One look, since others may remove the file meanwhile.
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(target.stat().st_mode):
            raise OSError(errno.EEXIST, "a folder or a device of that name is there", str(target))
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        _sync_folder(target.parent)


def check_output(path: Path, what: str, *, folder: bool = False) -> None:
    """Raise InputError, naming ``what``, where a file, or a folder, cannot be written: to be called before the work.

    Leaves nothing behind. Room on the disk cannot be known before.
    """
    try:
        for at, part in enumerate(path.parts):
            # Once the folder was made, the path would lead to what it was not looked at for.
            if part == ".." and not (inside := Path(*path.parts[:at])).is_dir():
                raise InputError(f"{what} {str(path)!r}: no folder {str(inside)!r} to go back from")
        if (
            path.is_symlink()
            and not path.exists()
            and (folder or not Path(os.path.realpath(path)).parent.is_dir())
        ):
            raise InputError(
                f"{what} {str(path)!r}: a link to {os.path.realpath(path)!r}, which is not there; remove it"
            )
        if path.exists() and not (path.is_dir() if folder else path.is_file()):
            found = "a folder" if path.is_dir() else "a file" if path.is_file() else "a device"
            wanted = "a folder" if folder else "a file's name"
            raise InputError(f"{what} {str(path)!r}: expected {wanted}, found {found}")
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # raises for a name that is too long
        place = path if folder else path.parent
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"{what} {str(path)!r}: cannot be written ({why}); choose another"
        ) from error


def write_file(path: Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` in one step, in a folder made for it; CheckpointError, the old file intact."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be written: {error.strerror}; free some space or choose another folder"
        ) from error


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder and hold it while inside; CheckpointError where another process of this machine does.

    A folder that was made here and is still empty at the end goes again. Nothing is held where the system or the file
    system has no locks.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"run folder {str(folder)!r} cannot be written: {error.strerror}; choose another"
        ) from error
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            # Workers of a training that was killed hold its lock until they notice, which takes them seconds.
            for left in reversed(range(_LOCK_TRIES)):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not left:
                        raise
                    time.sleep(0.1)
        except BlockingIOError as error:
            raise CheckpointError(
                f"run folder {str(folder)!r}: another training is writing into it; wait for its end, or choose another "
                "folder (out=)"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS):
                raise
        yield
    finally:
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise InputError for what no file can be called."""
    check_is("path", path, (str, os.PathLike), "a text or a Path")
    if "\0" in str(path):
        raise InputError(f"path {str(path)!r}: expected one without NUL characters")


@contextlib.contextmanager
def error_context(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the file's name in front of any complaint about it; InputError for what no file can be called."""
    check_path(path)
    try:
        yield
    except (TaskFileError, BackboneMismatchError) as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error.__cause__
    except OSError as error:
        raise TaskFileError(
            f"{os.fspath(path)}: cannot be read ({error.strerror}); expected a task file"
        ) from error


def user_cache() -> Path:
    """Return the folder for what can be fetched or made again: $PIGGYBACK_CACHE, or ~/.cache/piggyback.

    Raises InputError where neither the variable nor the user's home folder is known, as in some containers.
    """
    if given := os.environ.get("PIGGYBACK_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "piggyback"
    except RuntimeError as error:
        raise InputError(
            "the user has no home folder: expected PIGGYBACK_CACHE=DIR, a folder for caches; set it"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make the new name last; some network file systems cannot, but the file is whole anyway."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
