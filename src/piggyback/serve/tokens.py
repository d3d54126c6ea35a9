"""The secret that a server and its clients share: from a file or the environment, never from a command line."""

from __future__ import annotations

import os
from pathlib import Path

from piggyback.errors import InputError

VARIABLE = "PIGGYBACK_TOKEN"


def read_token(file: str | os.PathLike[str] | None = None) -> str | None:
    """Return the token in ``file``, else the one in $PIGGYBACK_TOKEN, else None.

    A file holds nothing else but space around it. Raises InputError, without showing it, for one that cannot be read
    or cannot be a token; an empty one is an error too, never a server that is open to everyone.
    """
    if file is None:
        text, place = os.environ.get(VARIABLE), f"${VARIABLE}"
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
    if not token or len(token) > 4096 or not is_token(token):
        raise InputError(
            f"{place}: expected a token of printable ASCII without spaces, 1 to 4096 characters"
            + ("" if token else "; found nothing")
        )
    return token


def is_token(text: str) -> bool:
    """Return whether ``text`` can go into a header as a token.

    >>> is_token("s3cret"), is_token("two words")
    (True, False)
    """
    return text != "" and text.isascii() and text.isprintable() and " " not in text
