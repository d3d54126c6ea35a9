"""A running server's answers for image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from piggyback.client import Client
from piggyback.errors import InputError, TaskNameError
from piggyback.names import read_token
from piggyback.schemas import Answer
from piggyback.serve.store.stores import SUFFIX
from piggyback.taskfile.task import check_name


def ask(
    url: str,
    token_file: Path | None,
    files: Sequence[Path],
    tasks: Sequence[str],
    infer: bool,
    top: int,
    at_once: int = 64,
) -> list[tuple[Path, Answer]]:
    """Return each file with the answer of every one of ``tasks``, or if ``infer``, of the surest one only.

    No task and ``infer`` leaves the choice among all its tasks to the server. Raises InputError for a task file in
    place of a name, and what ``Client.predict`` raises.
    """
    for name in tasks:
        if not is_name(name):
            given = Path(name).name.removesuffix(SUFFIX)
            hint = f", such as {given}" if is_name(given) else ""
            raise InputError(
                f"task {name!r}: with --url expected a task's name on the server{hint}"
            )
    if not tasks and not infer:
        raise InputError(
            "with --url expected --task NAME, or --infer-task to let the server choose"
        )
    found: list[tuple[Path, Answer]] = []
    with Client(url, read_token(token_file)) as client:
        for start in range(0, len(files), at_once):
            part = list(files[start : start + at_once])
            if tasks and infer:
                answers = [client.infer(file, list(tasks), top)[:1] for file in part]
            else:
                by_task = [client.predict(part, name, top) for name in tasks or (None,)]
                answers = [list(group) for group in zip(*by_task, strict=True)]
            found += [(f, one) for f, group in zip(part, answers, strict=True) for one in group]
    return found


def refuse_local(**given: object) -> None:
    """Raise InputError for an option that a server has no use for."""
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"--{name}: of no use with --url, where the server has its own network; leave it out"
            )


def task_files(tasks: Sequence[str], token_file: Path | None) -> list[Path]:
    """Return the paths of task files; raises BadParameter for none, InputError for what only a server knows."""
    if not tasks:
        raise typer.BadParameter("expected a task file, found none", param_hint="'--task'")
    if token_file is not None:
        raise InputError("--token-file: it is for a server; give --url, or leave it out")
    for name in tasks:
        if is_name(name) and not Path(name).exists():
            raise InputError(
                f"task {name!r}: expected a task file, such as {name}{SUFFIX}; the name of a task on "
                "a server needs --url"
            )
    return [Path(name) for name in tasks]


def is_name(text: str) -> bool:
    """Return whether ``text`` reads as a task's name rather than a file's.

    >>> is_name("signs"), is_name("signs.safetensors"), is_name("tasks/signs")
    (True, False, False)
    """
    try:
        return not check_name(text).endswith(SUFFIX)
    except TaskNameError:
        return False
