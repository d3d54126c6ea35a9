"""Names under which a browser may ask a server that has no token."""

from __future__ import annotations

import ipaddress
import re

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]*)?")


def names_this_machine(host: str) -> bool:
    """Return whether a ``Host`` header is an address or "localhost", or is not there at all.

    A page of a stranger can let its own name lead to 127.0.0.1 and then read what a server there answers; the
    name in this header is the one it came by. An address cannot be made to lead elsewhere.

    >>> names_this_machine("localhost:8000"), names_this_machine("[::1]:8000"), names_this_machine("a.example")
    (True, True, False)
    """
    if not host:
        return True
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1] or found[2]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() == "localhost"
    return True
