"""Where a server is."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from piggyback.errors import InputError


@dataclass(frozen=True)
class Address:
    """A server's URL, taken apart."""

    secure: bool
    """https."""
    host: str
    port: int
    base: str
    """What goes in front of every path: ``""`` or ``/some/place``."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.secure}://{host}:{self.port}{self.base}"


def parse_url(url: str) -> Address:
    """Return where ``url`` leads; raises InputError unless it is a plain http or https URL.

    >>> parse_url("https://models.example/vision/")
    Address(secure=True, host='models.example', port=443, base='/vision')
    >>> parse_url("127.0.0.1:8000")
    Traceback (most recent call last):
    ...
    piggyback.errors.InputError: URL '127.0.0.1:8000': expected http:// or https:// in front, such as \
http://127.0.0.1:8000
    """
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        raise _refused(url, "a text of printable ASCII without spaces")
    if "://" not in url:
        raise _refused(url, "http:// or https:// in front")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(url, f"a host and a port from 1 to 65535 ({error})") from error
    if parts.scheme not in ("http", "https"):
        raise _refused(url, f"http or https, found {parts.scheme!r}")
    if "@" in parts.netloc:
        # The URL is not shown: there may be a password in it.
        raise InputError(
            f"URL of {host!r}: expected no user name or password in it; a token goes into `token`"
        )
    if not host or port == 0:
        raise _refused(url, "a host and a port from 1 to 65535")
    if "?" in url or "#" in url:
        raise _refused(url, "nothing after the path")
    secure = parts.scheme == "https"
    return Address(secure, host, port or (443 if secure else 80), parts.path.rstrip("/"))


def _refused(url: object, expected: str) -> InputError:
    return InputError(f"URL {url!r}: expected {expected}, such as http://127.0.0.1:8000")
