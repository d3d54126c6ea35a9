"""A server's refusals as the errors that the engine raises in one's own process."""

from __future__ import annotations

import json
from typing import Any

from piggyback.client.connections import Reply
from piggyback.errors import ERRORS_BY_CODE, OverloadError, ServerError

_SHOWN = 200
"""Characters of an answer that is none of ours."""


def content_of(reply: Reply, server: str) -> Any:
    """Return the JSON of an answer, or None for an empty one; raises what a refusal stands for."""
    if reply.status == 204:
        return None
    content = _json(reply)
    if 200 <= reply.status < 300 and content is not None:
        return content
    code, message = _refusal(content)
    if not message:
        raise strange(reply, server)
    if code == "overload":
        raise OverloadError(message, retry_after(reply))
    if code not in ERRORS_BY_CODE:
        raise ServerError(f"server {server}: refused with {reply.status} {code}: {message}")
    raise ERRORS_BY_CODE[code](message)


def can_be_asked_again(reply: Reply) -> bool:
    """Return whether the server says that it did nothing, and will soon: it is busy, or starting."""
    return reply.status == 429 or (reply.status == 503 and _refusal(_json(reply))[0] == "starting")


def retry_after(reply: Reply) -> float:
    """Return the seconds after which the server wants to be asked again; 1 if it does not say."""
    text = reply.headers.get("retry-after", "").strip()
    return float(text) if text.isascii() and text.isdigit() else 1.0


def strange(reply: Reply, server: str) -> ServerError:
    """Return the error for an answer that is none of a Piggyback server."""
    place = reply.headers.get("location")
    moved = f", which points to {place!r}" if place else ""
    text = " ".join(reply.body[: 4 * _SHOWN].decode("utf-8", "replace").split())[:_SHOWN]
    return ServerError(
        f"server {server}: expected a Piggyback server's answer, found status {reply.status}{moved} "
        f"and {text!r}; check the URL"
    )


def _json(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError):
        return None


def _refusal(content: Any) -> tuple[str, str]:
    """Code and message of a refusal; empty for what is none."""
    error = content.get("error") if isinstance(content, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return "", ""
    return str(error.get("code")), error["message"]
