"""Interleaved rANS over bytes of independent bits: many lanes side by side, one NumPy step for all.

    symbol  = a byte; P(byte) = p^ones (1 - p)^zeros with p = a / 128, as 14-bit integer frequencies
    lane    = a 32-bit state x in [2^16, 2^32); symbol i belongs to lane i mod L
    decode  : slot = x mod 2^14 -> symbol s;  x <- f(s) (x >> 14) + slot - c(s);
              where x < 2^16:  x <- x 2^16 + next word

Only integers decide what a file means. A lane's first state (the decoder's last) carries 16 bits of
payload, so a lane costs about one byte instead of three.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from piggyback.errors import TaskFileError

Bytes = NDArray[np.uint8]

PRECISION = 14
LOW = 1 << 16
MAX_STEPS = 4096
"""Symbols a lane may carry; it bounds the number of Python steps that a file can ask for."""
MAX_LOG_LANES = 16
STEPS = 160
"""Symbols a lane carries at least when this encoder chooses the number of lanes."""


def lanes_for(symbols: int) -> int:
    """Return the exponent of the number of lanes for so many symbols.

    >>> lanes_for(40_000), lanes_for(10)
    (7, 0)
    """
    wanted = min(10, (symbols // STEPS).bit_length() - 1)
    needed = (max(symbols - 1, 0) // MAX_STEPS).bit_length()
    return max(0, wanted, needed)


def without_tail(counts: Sequence[int], tail: int) -> list[int]:
    """Return the lengths that are left when ``tail`` symbols are cut off the end of all.

    >>> without_tail([5, 3, 2], 4)
    [5, 1, 0]
    """
    left = list(counts)
    for i in reversed(range(len(left))):
        cut = min(tail, left[i])
        left[i] -= cut
        tail -= cut
    return left


@lru_cache(maxsize=128)
def frequencies(a: int) -> NDArray[np.uint32]:
    """Return the frequencies of the 256 bytes whose bits are 1 with p = a / 128.

    All are at least 1 and their sum is 2^14.

    >>> frequencies(64)[:3], frequencies(32)[0]
    (array([64, 64, 64], dtype=uint32), np.uint32(1759))
    """
    by_ones = [max(1, (a**k * (128 - a) ** (8 - k)) >> (56 - PRECISION)) for k in range(9)]
    table = np.array([by_ones[bin(byte).count("1")] for byte in range(256)], dtype=np.int64)
    table[0 if a <= 64 else 255] += (1 << PRECISION) - int(table.sum())
    return table.astype(np.uint32)


def encode(
    parts: Sequence[tuple[int, Bytes]], payload: NDArray[np.uint16], log_lanes: int
) -> NDArray[np.uint16]:
    """Return the words that ``decode`` turns back into each ``(a, bytes)`` and ``payload``.

    ``payload`` has one word for each of the ``2 ** log_lanes`` lanes.
    """
    lanes = 1 << log_lanes
    symbols = np.concatenate([data for _, data in parts] or [np.zeros(0, np.uint8)])
    freq = np.empty(len(symbols), np.uint64)
    start = np.empty(len(symbols), np.uint64)
    at = 0
    for a, data in parts:
        table = frequencies(a).astype(np.uint64)
        freq[at : at + len(data)] = table[data]
        start[at : at + len(data)] = (np.cumsum(table) - table)[data]
        at += len(data)
    state = payload.astype(np.uint64) + np.uint64(LOW)
    words = []
    for first in range((max(len(symbols) - 1, 0) // lanes) * lanes, -1, -lanes):
        f, c = freq[first : first + lanes], start[first : first + lanes]
        x = state[: len(f)]
        full = x >= f << np.uint64(32 - PRECISION)
        words.append((x[full] & np.uint64(0xFFFF)).astype(np.uint16))
        x = np.where(full, x >> np.uint64(16), x)
        state[: len(f)] = ((x // f) << np.uint64(PRECISION)) + x % f + c if len(f) else x
    states = state.astype("<u4").view("<u2")
    return np.concatenate([states, *reversed(words)]).astype(np.uint16)


def decode(
    words: NDArray[np.uint16], runs: Sequence[tuple[int, int]], log_lanes: int
) -> tuple[Bytes, NDArray[np.uint16]]:
    """Return the bytes of all ``(a, count)`` runs, one after the other, and the payload.

    Raises TaskFileError where the words are too few, too many, or not what an encoder writes.
    """
    lanes = 1 << log_lanes
    total = sum(count for _, count in runs)
    if len(words) < 2 * lanes:
        raise TaskFileError(
            f"mask stream has {len(words)} words: expected at least {2 * lanes}; it is damaged"
        )
    tables = sorted({a for a, _ in runs})
    entries = np.concatenate([_slots(a)[0] for a in tables] or [np.zeros(0, np.uint32)])
    which = np.repeat(
        np.array([tables.index(a) for a, _ in runs], np.uint32),
        np.array([count for _, count in runs], np.int64),
    )
    index = which << np.uint32(PRECISION)  # becomes table * 2^14 + slot
    state = words[: 2 * lanes].astype("<u2").view("<u4").astype(np.uint32)
    rest = words[2 * lanes :].astype(np.uint32)
    mask, shift, half = np.uint32((1 << PRECISION) - 1), np.uint32(PRECISION), np.uint32(16)
    used = 0
    for first in range(0, total, lanes):
        at = index[first : first + lanes]
        x = state[: len(at)]
        at += x & mask
        entry = entries.take(at)
        x >>= shift
        x *= entry >> shift
        x += entry & mask
        low = (x < LOW).nonzero()[0]
        if len(low):
            fresh = rest[used : used + len(low)]
            if len(fresh) < len(low):
                raise TaskFileError("mask stream ends early; the file is damaged")
            x[low] = x.take(low) << half | fresh
            used += len(low)
    if used != len(rest) or np.any(state >> half != 1):
        raise TaskFileError("mask stream does not end where its bytes end; the file is damaged")
    symbols = np.concatenate([_slots(a)[1] for a in tables] or [np.zeros(0, np.uint8)])
    return symbols.take(index), (state & np.uint32(0xFFFF)).astype(np.uint16)


@lru_cache(maxsize=32)
def _slots(a: int) -> tuple[NDArray[np.uint32], Bytes]:
    """For each of the 2^14 slots: frequency << 14 | slot - start, and the byte."""
    freq = frequencies(a)
    symbols = np.repeat(np.arange(256, dtype=np.uint8), freq)
    bias = np.arange(1 << PRECISION, dtype=np.uint32) - np.repeat(np.cumsum(freq) - freq, freq)
    return np.repeat(freq, freq) << np.uint32(PRECISION) | bias.astype(np.uint32), symbols
