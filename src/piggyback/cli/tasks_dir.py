"""The directory that `piggyback serve` answers from: is it there, and which backbone is it for?"""

from __future__ import annotations

from pathlib import Path

from piggyback.errors import InputError, PiggybackError
from piggyback.serve.store.stores import SUFFIX, open_store
from piggyback.taskfile.header import TaskHeader, header_of


def first_task(place: str) -> TaskHeader | None:
    """Return the header of the first task file by name that can be read; None for a directory without task files.

    Raises InputError for a directory that is not there or has only files that cannot be read, and UnavailableError
    for a URL that cannot be listed.
    """
    if "://" not in place:
        _check_folder(Path(place))
    store = open_store(place)
    problems: list[str] = []
    for name in sorted(store.list()):
        try:
            return header_of(store.read(name))
        except PiggybackError as error:
            problems.append(f"{name}{SUFFIX}: {error}")
    if problems:
        raise InputError(
            f"tasks directory {place!r}: none of its {len(problems)} task files can be read; "
            f"{problems[0]}"
        )
    return None


def no_tasks(place: str) -> InputError:
    """Return the error for a directory without task files, where the backbone is not given either."""
    below = sorted(Path(place).glob(f"*/*{SUFFIX}")) if "://" not in place else []
    hint = f"; did you mean {str(below[0].parent)!r}?" if below else ""
    return InputError(
        f"tasks directory {place!r}: no task files (NAME{SUFFIX}) in it; give --backbone to start "
        f"without any{hint}"
    )


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.is_file():
        raise InputError(
            f"tasks directory {str(folder)!r}: expected a folder, found a file; "
            f"give its folder: {str(folder.parent)!r}"
        )
    raise InputError(
        f"tasks directory {str(folder)!r}: no such folder; make it and put task files into it, or "
        "check the path"
    )
