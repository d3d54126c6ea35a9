"""The page's files, read once from the package."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from piggyback.serve.http.replies import Reply

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}
"""By the end of their names; files of other kinds are not for clients."""


class Assets:
    """The files in ``page/`` by name: a name that is not among them leads nowhere, whatever is in it."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[bytes, str, str]] = {}
        for file in (files("piggyback.serve.http") / "page").iterdir():
            kind = KINDS.get(file.name[file.name.rfind(".") :])
            if kind is not None and file.is_file():
                data = file.read_bytes()
                self._found[file.name] = data, kind, f'"{hashlib.sha256(data).hexdigest()[:16]}"'

    def reply(self, name: str, known: str) -> Reply | None:
        """Return a file, or 304 if its ETag is among ``known``; None where there is no such file."""
        if name not in self._found:
            return None
        data, kind, tag = self._found[name]
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if tag in known:
            return Reply(b"", 304, kind, headers)
        return Reply(data, 200, kind, headers)
