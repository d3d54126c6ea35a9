"""Names and tokens that are valid, and text for screens: the same for files, servers and clients, without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from piggyback.errors import InputError, TaskNameError

TASK_NAME = "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""A regular expression, as JSON Schema writes it."""
TOKEN_VARIABLE = "PIGGYBACK_TOKEN"
MAX_TOKEN = 4096

_NAME = re.compile(TASK_NAME)


def check_name(name: str) -> str:
    """Return ``name`` if it can name a task and its file.

    >>> check_name("signs-64px")
    'signs-64px'
    >>> check_name("../signs")
    Traceback (most recent call last):
    ...
    piggyback.errors.TaskNameError: task name '../signs': expected letters, digits, '.', '_' and '-', at most 100, \
the first a letter or digit
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TaskNameError(
            f"task name {name!r:.110}: expected letters, digits, '.', '_' and '-', at most 100, "
            "the first a letter or digit"
        )
    return name


def check_several(tasks: object) -> list[str]:
    """Return the names of several tasks as a list; raises InputError for a single name, and for none.

    >>> check_several(("signs", "letters"))
    ['signs', 'letters']
    """
    several = isinstance(tasks, Iterable) and not isinstance(tasks, (str, bytes))
    names = list(tasks) if several else []  # type: ignore[call-overload]
    if not names:
        raise InputError(f"tasks {tasks!r:.100}: expected a list of names, or None for all")
    return names


def plain(text: str) -> str:
    r"""Return ``text`` fit to be shown in one line: what a terminal would act on, or cannot show, is escaped.

    >>> plain("straße"), plain("red\x1b[31m\n"), plain("a\udcffb")
    ('straße', 'red\\x1b[31m\\n', 'a\\udcffb')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def human_bytes(count: float) -> str:
    """Return a size in the unit that suits it, in powers of ten.

    >>> human_bytes(13_600_000), human_bytes(999), human_bytes(2.5e12)
    ('13.6 MB', '999 B', '2.5e+03 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def read_token(file: str | os.PathLike[str] | None = None) -> str | None:
    """Return the token in ``file``, else the one in $PIGGYBACK_TOKEN, else None.

    A token comes from a file or the environment, never from a command line. A file holds nothing else but space
    around it. Raises InputError, without showing it, for one that cannot be read or cannot be a token; an empty one is
    an error too, never a server that is open to everyone.
    """
    if file is None:
        text, place = os.environ.get(TOKEN_VARIABLE), f"${TOKEN_VARIABLE}"
        if text is None:
            return None
    else:
        place = f"token file {os.fspath(file)!r}"
        try:
            text = Path(file).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not ASCII"
            raise InputError(
                f"{place}: cannot be read ({why}); expected the token in it"
            ) from error
    token = text.strip()
    if len(token) > MAX_TOKEN or not is_token(token):
        raise InputError(
            f"{place}: expected a token of printable ASCII without spaces, 1 to {MAX_TOKEN} characters"
            + ("" if token else "; found nothing")
        )
    return token


def is_token(text: str) -> bool:
    """Return whether ``text`` can go into a header as a token.

    >>> is_token("s3cret"), is_token("two words")
    (True, False)
    """
    return isinstance(text, str) and re.fullmatch("[!-~]+", text) is not None
