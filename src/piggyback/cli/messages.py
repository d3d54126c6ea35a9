"""Messages of the library, which speak Python, as the command line says them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_PARAMETER = re.compile(
    r"(?<!\w)'[^']*'"  # a file, a class, a value: never a parameter
    r"|(?:^|(?<=[ (]))(?:(?P<name>[a-z_]+)=(?P<value>True|False)?(?=$|[ ,;:)])"
    r"|(?P<long>[a-z]+(?:_[a-z]+)+)(?![\w.=/])|^(?P<number>[a-z]+)(?= -?(?:[\d.]+|nan|inf): ))"
)
_OPTIONS: dict[str, tuple[str, str]] = {}
"""Of the command that runs: how a parameter is given, and how its opposite."""


def takes_options(parameters: Iterable[Any]) -> None:
    """Note the options of the command that runs."""
    _OPTIONS.clear()
    for each in parameters:
        if each.param_type_name == "option":
            _OPTIONS[each.name] = each.opts[0], "".join(each.secondary_opts[:1])


def in_options(text: str) -> str:
    """Return a message of the library, which names parameters as Python does, with this command's options for them.

    Parameters are ``head=``, ``resume=True``, a word with an underscore, or the message's first word before a number. A
    parameter of a part may be named without the part, as ``shift`` for ``augment_shift``. What is no option stays.
    """

    def said(found: re.Match[str]) -> str:
        name = found["name"] or found["long"] or found["number"] or ""
        near = [n for n in _OPTIONS if n.startswith(f"{name}_") or n.endswith(f"_{name}")]
        exact = [n for n in (name, name.removesuffix("s")) if n in _OPTIONS]
        known = exact[:1] or near
        return (len(known) == 1 and _OPTIONS[known[0]][found["value"] == "False"]) or found[0]

    return _PARAMETER.sub(said, text)
