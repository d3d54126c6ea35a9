"""How an engine works: every choice, with its default. Nothing here needs torch to be imported."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from threading import TIMEOUT_MAX
from typing import Any, Literal, TypeVar

from piggyback.errors import InputError, check_is, check_number, near_misses

T = TypeVar("T")
Precision = Literal["auto", "float32", "bfloat16"]

MOST_THREADS = 1024
"""Of a sort, that may be asked for: a machine that cannot start so many ends the process."""
MOST_WORKERS = 4
"""Beyond, Python's own lock is in the way: more cores go into each worker's operations."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine works; the defaults are for a machine that does nothing else."""

    max_batch: int = 32
    """Images answered together at most."""
    max_queue: int = 1024
    """Images that may wait, half of them for one task; more raise OverloadError."""
    patience_ms: float = 20.0
    """How long a request may be passed over for the sake of fewer switches: see ``queues.py``."""
    workers: int | None = None
    """Threads that run the network, each on its share of the cores; None: one per core, at most 4; one for a GPU."""
    loaders: int = 1
    """Threads that read task files."""
    decode_apart: bool = False
    """Whether task files are decoded in a process of their own, so that hot tasks hardly notice cold ones. It takes
    about 300 MB, most of them shared. A script that sets it needs ``if __name__ == "__main__":``."""
    device: str | None = None
    """None: the first GPU, else the CPU."""
    precision: Precision = "auto"
    """Of the network's arithmetic; auto: bfloat16 where the processor has instructions for it."""
    compile: bool = False
    """Whether the network is compiled: the first batches take minutes, later ones are faster."""
    watch_s: float = 1.0
    """Seconds between looks at the folder; 0: only ``rescan`` looks."""
    max_pixels: int = 25_000_000
    """Of one image; larger ones are refused before they are decoded, which takes up to 19 bytes per pixel."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "workers", "loaders", "max_pixels"):
            value = getattr(self, name)
            unset = name == "workers" and value is None
            if not unset and (type(value) is not int or value < 1):
                raise InputError(f"{name} {value!r}: expected a whole number, 1 or more")
            if name in ("workers", "loaders") and not unset and value > MOST_THREADS:
                raise InputError(f"{name} {value}: expected at most {MOST_THREADS}")
        for name in ("patience_ms", "watch_s"):
            value = getattr(self, name)
            check_number(name, value, lambda s: 0 <= s <= TIMEOUT_MAX, "a number, 0 or more")
        for name in ("decode_apart", "compile"):
            check_is(name, getattr(self, name), bool, "True or False")

    @property
    def place(self) -> str:
        """The device that the network runs on."""
        import torch  # here, so that a help page does not load it

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def division(self) -> tuple[int, int]:
        """Return the number of workers, and of cores each may use.

        >>> EngineOptions(workers=1).division()[0]
        1
        """
        import torch

        cores = torch.get_num_threads()
        workers = self.workers or (min(cores, MOST_WORKERS) if self.place == "cpu" else 1)
        return workers, max(1, cores // workers)


_SIZE = re.compile(r"\d{1,18}(\.\d{1,9})? ?([kmgt]i?)?b|\d{1,18}", re.ASCII | re.IGNORECASE)


def parse_bytes(size: int | str, what: str = "size") -> int:
    """Return the bytes that ``size`` stands for, rounded down; raises InputError that names ``what``.

    Units are decimal (kB, MB, GB, TB) or binary (KiB, MiB, GiB, TiB), in any case; a bare number is bytes.

    >>> parse_bytes("2GiB"), parse_bytes("1.5 MB"), parse_bytes(4096)
    (2147483648, 1500000, 4096)
    """
    from pydantic import ByteSize, TypeAdapter  # here: a help page does not wait for it

    text = size.strip() if isinstance(size, str) else str(size)
    # pydantic alone takes "1,5GB" for one byte.
    if isinstance(size, bool) or not _SIZE.fullmatch(text):
        raise InputError(
            f"{what} {size!r}: expected bytes above 0, such as 2GiB, 512MiB, 1.5GB or 1000000"
        )
    found = int(TypeAdapter(ByteSize).validate_python(text))
    if found < 1:
        raise InputError(f"{what} {size!r}: expected at least 1 byte, such as 2GiB or 512MiB")
    return found


def from_mapping(kind: type[T], values: Any, called: Callable[[str], str]) -> T:
    """Return a dataclass from a mapping of its fields; raises InputError that names the one at fault.

    ``called`` says what a field, or its part, is called where the values come from; "" is all of them.

    >>> from_mapping(EngineOptions, {"max_batch": 8}, "engine.{}".format).max_batch
    8
    """
    from pydantic import TypeAdapter, ValidationError  # here: a help page does not wait for it

    if not isinstance(values, Mapping):
        raise InputError(f"{called('')}: expected a mapping, found {values!r}")
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            hint = near_misses(str(name), known)
            raise InputError(f"{called(name)}: no such option{hint}; known: {', '.join(known)}")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = called(".".join(map(str, first["loc"])))
        raise InputError(f"{place}: {first['msg']}") from error
