"""What goes back to a client."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from piggyback.serve.http.refusals import RefusedError

PAGE_POLICY = (
    "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""What the page may load: its own files, and the images it was given."""

_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
)

_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Reply:
    """A status, a body and its headers."""

    body: bytes
    status: int = 200
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    def start(self, request_id: str, *, close: bool) -> dict[str, Any]:
        """Return the ASGI message that begins this reply; ``close``: the connection ends with it."""
        headers = [
            *_ALWAYS,
            (b"content-type", self.kind.encode()),
            (b"x-request-id", request_id.encode()),
        ]
        if self.status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(self.body)))
        if self.headers:
            headers += [
                (name.lower().encode(), text.encode()) for name, text in self.headers.items()
            ]
        else:
            headers.append((b"cache-control", b"no-store"))
        if close:
            headers.append((b"connection", b"close"))
        return {"type": "http.response.start", "status": self.status, "headers": headers}


def json_reply(value: object, status: int = 200) -> Reply:
    """Return ``value`` as JSON.

    >>> json_reply({"status": "ready"}).body
    b'{"status":"ready"}'
    """
    return Reply(_ENCODER.encode(value).encode(), status)


def refused(refusal: RefusedError, request_id: str) -> Reply:
    """Return what a client reads when it is refused; a fault of the server names the request to look for."""
    value: dict[str, dict[str, str]] = refusal.to_json()
    if refusal.status == 500:
        value["error"]["request_id"] = request_id
    reply = json_reply(value, refusal.status)
    return Reply(reply.body, reply.status, headers={"Cache-Control": "no-store", **refusal.headers})
