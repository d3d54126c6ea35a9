"""Damaged bytes, for whatever reads files of strangers."""

from __future__ import annotations

import numpy as np


def damaged(data: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """Bytes changed, cut out, repeated, moved or taken from another file, digits replaced, or the end cut off."""
    bad = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        i, j = sorted(int(x) for x in rng.integers(0, len(bad) + 1, 2))
        piece = int(rng.integers(1, 60))
        match int(rng.integers(7)):
            case 0:
                bad[i : i + 1] = bytes(byte ^ 1 << int(rng.integers(8)) for byte in bad[i : i + 1])
            case 1:
                bad[i : i + 1] = rng.bytes(1)
            case 2:
                del bad[i : i + piece]
            case 3:
                bad[i:i] = bad[j : j + piece]
            case 4:
                bad[i : i + piece] = other[i : i + piece]
            case 5:
                digits = [at for at, byte in enumerate(bad) if 48 <= byte <= 57]
                at = digits[int(rng.integers(len(digits)))] if digits else i
                bad[at : at + 1] = str(int(10 ** rng.uniform(0, 13))).encode()
            case _:
                del bad[i:]
    return bytes(bad)
