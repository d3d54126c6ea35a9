"""What a request asks: images and choices, however they were sent."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from piggyback.serve.http.calls import Call
from piggyback.serve.http.forms import parse_form
from piggyback.serve.http.limits import Limits
from piggyback.serve.http.refusals import RefusedError, invalid, too_large
from piggyback.serve.http.strict import kind_of, parse_object

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif")
"""Content types of a body that is an image; what it really is decides the decoder."""
TOP_K = 5
MAX_TOP_K = 10_000


@dataclass
class Asked:
    """Images, and what is asked about each of them."""

    images: list[bytes]
    top_k: int | None = None
    tasks: list[str] | None = None

    def set_top_k(self, value: object) -> None:
        """Take a number that may be sent once. Raises RefusedError (422)."""
        if self.top_k is not None:
            raise invalid("top_k is there twice: expected it once")
        if type(value) is not int or not 1 <= value <= MAX_TOP_K:
            raise invalid(
                f"top_k: expected a whole number from 1 to {MAX_TOP_K}, found {_shown(value)}"
            )
        self.top_k = value

    def add_task(self, name: object) -> None:
        """Take the name of a task, of which there may be several. Raises RefusedError (422)."""
        if not isinstance(name, str):
            raise invalid(f"tasks: expected texts, found {kind_of(name)}")
        self.tasks = [*(self.tasks or []), name]


async def read_asked(call: Call, *, several_tasks: bool) -> Asked:
    """Return what ``call`` asks, all limits checked; ``several_tasks``: whether it may name tasks.

    Raises RefusedError: 400 for what cannot be read, 413, 415, 422 for fields that are not known.
    """
    limits = call.service.limits
    asked = Asked([])
    for name, value in call.queried(("top_k", "task") if several_tasks else ("top_k",)):
        _take_text(asked, name, value)
    kind = call.header(b"content-type")
    plain = kind.partition(";")[0].strip().lower()
    if plain in IMAGE_TYPES:
        asked.images.append(await call.body(limits.body_bytes))
    elif plain == "multipart/form-data":
        _take_form(asked, await call.body(limits.body_bytes), kind, limits, several_tasks)
    elif plain == "application/json":
        _take_json(asked, await call.body(limits.body_bytes), limits, several_tasks)
    else:
        raise RefusedError(
            415,
            "unsupported",
            f"content type {plain[:80]!r}: expected multipart/form-data, application/json, "
            f"{', '.join(IMAGE_TYPES)}",
        )
    return _checked(asked, limits)


def _checked(asked: Asked, limits: Limits) -> Asked:
    if not asked.images:
        raise invalid("no image: expected one or more in fields named 'image'")
    if len(asked.images) > limits.images:
        raise too_large(
            f"{len(asked.images)} images: the server takes {limits.images} in a request; send several"
        )
    for number, image in enumerate(asked.images, 1):
        if not image:
            raise RefusedError(
                400, "bad_image", f"image {number} is empty: expected an image file's bytes"
            )
    if asked.tasks is not None and len(asked.tasks) > limits.tasks:
        raise invalid(f"{len(asked.tasks)} tasks: the server takes {limits.tasks} in a request")
    return asked


def _take_text(asked: Asked, name: str, text: str) -> None:
    """Take a field that came as text."""
    if name == "task":
        asked.add_task(text)
    else:
        asked.set_top_k(int(text) if text.isdecimal() and len(text) < 9 else text)


def _take_form(asked: Asked, body: bytes, kind: str, limits: Limits, several_tasks: bool) -> None:
    most = limits.images + 1 + (limits.tasks if several_tasks else 0)
    known = ("image", "top_k", "task") if several_tasks else ("image", "top_k")
    for part in parse_form(body, kind, most):
        if part.name == "image":
            asked.images.append(part.data)
        elif part.name in known:
            _take_text(asked, part.name, part.data[:200].decode("utf-8", errors="replace"))
        else:
            raise invalid(f"form field {part.name[:40]!r}: expected {', '.join(known)}")


def _take_json(asked: Asked, body: bytes, limits: Limits, several_tasks: bool) -> None:
    values = parse_object(body, limits.images + limits.tasks + 8)
    known = ("image", "images", "top_k", "tasks") if several_tasks else ("image", "images", "top_k")
    for name in values:
        if name not in known:
            raise invalid(f"JSON field {name[:40]!r}: expected {', '.join(known)}")
    if ("image" in values) == ("images" in values):
        raise invalid("expected either 'image' or 'images'")
    if "top_k" in values:
        asked.set_top_k(values["top_k"])
    if "tasks" in values:
        names = _listed(values["tasks"], "tasks")
        if not names:
            raise invalid("tasks: expected one or more, or no such field")
        for name in names:
            asked.add_task(name)
    texts = [values["image"]] if "image" in values else _listed(values["images"], "images")
    if len(texts) > limits.images:
        raise too_large(
            f"{len(texts)} images: the server takes {limits.images} in a request; send several"
        )
    asked.images.extend(_decoded(text, number) for number, text in enumerate(texts, 1))


def _listed(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(f"{name}: expected a list, found {kind_of(value)}")
    return value


def _decoded(text: object, number: int) -> bytes:
    if not isinstance(text, str):
        raise invalid(f"image {number}: expected base64 as a text, found {kind_of(text)}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: letters beyond ASCII
        raise RefusedError(400, "bad_request", f"image {number} is not base64: {error}") from None


def _shown(value: object) -> str:
    return (
        repr(value[:40])
        if isinstance(value, str)
        else kind_of(value)
        if type(value) is not int
        else str(value)
    )
