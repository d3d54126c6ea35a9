"""How much a client may ask for; pixels are the engine's limit, which sees them first."""

from __future__ import annotations

from dataclasses import dataclass, fields
from threading import TIMEOUT_MAX

from piggyback.errors import InputError, check_number


@dataclass(frozen=True)
class Limits:
    """What a server takes from its clients; more is refused.

    >>> Limits(images=4).images
    4
    >>> Limits(images=0)
    Traceback (most recent call last):
    ...
    piggyback.errors.InputError: limit images 0: expected a whole number, 1 or more
    """

    body_bytes: int = 16 * 2**20
    """Of a request with images, as it comes over the network."""
    held_bytes: int = 512 * 2**20
    """Of all bodies that are in memory at once, so that many large ones cannot take all of it."""
    images: int = 32
    """In one request."""
    tasks: int = 32
    """Asked about one image; also how many there may be where a request names none."""
    timeout_s: float = 30.0
    """Seconds from a request's last byte to its answer."""
    upload_bytes: int = 64 * 2**20
    """Of a task file."""
    body_s: float = 30.0
    """Seconds that a request's body may take to arrive."""
    connections: int = 512
    """Open at once; uvicorn answers 503 beyond."""
    stop_s: float = 30.0
    """Seconds that requests which are being answered get when the server is told to stop."""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name.endswith("_s"):
                expected = f"seconds above 0, at most {TIMEOUT_MAX:.0f}"
                check_number(f"limit {name}", value, lambda s: 0 < s <= TIMEOUT_MAX, expected)
            elif type(value) is not int or value < 1:
                raise InputError(f"limit {name} {value!r}: expected a whole number, 1 or more")
