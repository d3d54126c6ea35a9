"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from piggyback.errors import InputError

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?) ?([a-z]{0,3})", re.ASCII)


def parse_bytes(size: int | str, what: str = "size") -> int:
    """Return the bytes that ``size`` stands for, rounded down; raises InputError that names ``what``.

    Units are decimal (kB, MB, GB, TB) or binary (KiB, MiB, GiB, TiB), in any case; a bare number is bytes.

    >>> parse_bytes("2GiB"), parse_bytes("1.5 MB"), parse_bytes(4096)
    (2147483648, 1500000, 4096)
    """
    if isinstance(size, int) and not isinstance(size, bool):
        found = size
    else:
        match = _SIZE.fullmatch(size.strip().lower()) if isinstance(size, str) else None
        if match is None or match[2] not in _UNITS:
            raise InputError(
                f"{what} {size!r}: expected bytes above 0, such as 2GiB, 512MiB, 1.5GB or 1000000"
            )
        whole, _, part = match[1].partition(".")
        unit = _UNITS[match[2]]
        # Integers throughout: a float has too few digits for large sizes.
        found = int(whole) * unit + int(part or "0") * unit // 10 ** len(part)
    if found < 1:
        raise InputError(f"{what} {size!r}: expected at least 1 byte, such as 2GiB or 512MiB")
    return found


def show_bytes(size: int) -> str:
    """Return ``size`` in its largest binary unit, to three digits.

    >>> show_bytes(2**31), show_bytes(1500), show_bytes(12)
    ('2 GiB', '1.46 KiB', '12 B')
    """
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _UNITS[unit.lower()]:
            return f"{size / _UNITS[unit.lower()]:.3g} {unit}"
    return f"{size} B"
