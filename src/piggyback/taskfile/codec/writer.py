"""The encoder's half of mask coding: masks become a few bit strings, and those become bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from piggyback.taskfile.codec import rans
from piggyback.taskfile.codec.classes import UNIT, plan, planes, planes_cost
from piggyback.taskfile.codec.reader import CODED, MAX_SHIFT, Bytes, three_axes

Bits = NDArray[np.bool_]


class Writer:
    """Collects bit strings by density, then writes everything at once."""

    def __init__(self) -> None:
        self._planes: dict[int, list[Bits]] = {}
        self._segments: dict[int, list[Bits]] = {}
        self._records: list[tuple[int, list[int]]] = []

    def add_mask(self, bits: Bits, shape: tuple[int, ...]) -> int:
        """Take one mask and return its cost in 1 / 1024 bits."""
        ones = int(np.count_nonzero(bits))
        invert = 2 * ones >= bits.size
        if ones in (0, bits.size):
            self._records.append((16 * invert, []))
            return 8 * UNIT
        view = (~bits if invert else bits).reshape(three_axes(shape))
        found = plan(view)
        head = len(found.grid) + 8 * found.axis + 16 * invert
        if found.of_line is None:
            self._add(self._segments, found.grid[0], view.ravel())
            self._records.append((head, [found.grid[0]]))
            return found.cost
        by_line = np.ascontiguousarray(np.moveaxis(view, found.axis, 0))
        for k, index in enumerate(found.grid):
            self._add(self._segments, index, by_line[found.of_line == k].ravel())
        names = list(found.grid)
        for plane, (index, _) in zip(
            planes(found.of_line, len(found.grid)),
            planes_cost(found.of_line, len(found.grid)),
            strict=True,
        ):
            self._add(self._planes, index, plane)
            names.append(index)
        self._records.append((head, names))
        return found.cost

    def finish(self) -> bytes:
        """Return header, records, words and raw bits."""
        used = sorted({*self._planes, *self._segments})
        header = bytearray([CODED, len(used)])
        coded: list[tuple[int, Bytes]] = []
        plain: list[Bytes] = []
        low: list[Bytes] = []
        for index in used:
            parts = [*self._planes.get(index, []), *self._segments.get(index, [])]
            positions = np.flatnonzero(np.concatenate(parts)).astype(np.int64)
            shift = _shift(len(positions), sum(part.size for part in parts))
            gaps = np.diff(positions, prepend=-1) - 1
            unary = np.zeros(int((gaps >> shift).sum()) + len(gaps), bool)
            unary[np.cumsum((gaps >> shift) + 1) - 1] = True
            a = _nearest(len(gaps), unary.size)
            high = np.packbits(unary, bitorder="little")
            header += bytes([shift, a]) + _varint(len(high))
            if a:
                coded.append((a, high))
            else:
                plain.append(high)
            low.append(((gaps[:, None] >> np.arange(shift)) & 1).astype(np.uint8).ravel())
        bits = np.concatenate(low or [np.zeros(0, np.uint8)])
        raw = np.concatenate([*plain, np.packbits(bits, bitorder="little")])
        symbols = np.concatenate([np.zeros(0, np.uint8), *(high for _, high in coded)])
        log_lanes = rans.lanes_for(len(symbols))
        inside = 2 << log_lanes  # bytes that travel in the lanes' states, as raw bits do
        tail = min(max(0, inside - len(raw)), len(symbols))
        raw = np.concatenate([symbols[len(symbols) - tail :], raw])
        counts = rans.without_tail([len(high) for _, high in coded], tail)
        coded = [(a, high[:count]) for (a, high), count in zip(coded, counts, strict=True)]
        payload = np.zeros(inside, np.uint8)
        payload[: len(raw)] = raw[:inside]
        words = rans.encode(coded, payload.view("<u2").astype(np.uint16), log_lanes)
        header += bytes([log_lanes]) + _varint(tail) + _varint(len(words))
        for head, names in self._records:
            header += bytes([head, *(used.index(name) for name in names)])
        return bytes(header) + words.astype("<u2").tobytes() + raw[inside:].tobytes()

    @staticmethod
    def _add(where: dict[int, list[Bits]], index: int, bits: Bits) -> None:
        where.setdefault(index, []).append(bits)


def _shift(marks: int, size: int) -> int:
    """Low bits of a gap to keep: they look random while 2^shift bits hold at most half a mark."""
    shift = 0
    while shift < MAX_SHIFT and marks << (shift + 2) <= size:
        shift += 1
    return shift


def _nearest(ones: int, size: int) -> int:
    """The density of unary bits in 1 / 128; 0, for raw, where coding would save nothing."""
    a = min(127, max(1, (256 * ones + size) // (2 * size))) if size else 64
    return 0 if a == 64 else a


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
