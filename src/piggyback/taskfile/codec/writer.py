"""The encoder of masks: packed masks -> a few bit strings -> bytes. docs/FORMAT.md describes the bytes.

    masks  --plan-->  lines of like density, of all layers, joined into a few bit strings
    string --Rice-->  gaps between marked bits: low bits as they are, quotients in unary
    unary  --rANS-->  words

In trained masks the channels inside a block differ far more in density than the layers do: they are the rows of one
layer and the columns of the next. Every line gets one of up to four densities of a fixed grid, where that costs less
than it saves: files are 3 to 8 % smaller by it. All costs are integers, so every machine makes the same choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from piggyback.masks.bits import PackedMask
from piggyback.taskfile.codec import rans
from piggyback.taskfile.codec.reader import (
    CODED,
    MAX_CLASSES,
    MAX_SHIFT,
    RAW,
    Bytes,
    Ints,
    three_axes,
)

Bits = NDArray[np.bool_]

UNIT = 1024
"""Costs are in 1 / 1024 bits."""
RECORD_BITS = 8
"""What naming one more string costs in a layer's record."""

_FINE = 3
_DEPTH = 16
_HALVES = range(_FINE, _FINE * _DEPTH + 1)
_P = [2.0 ** (-i / _FINE) for i in _HALVES]
_GRID = [*_P[::-1], *(1 - p for p in _P[1:])]
MARK = np.array([round(-math.log2(p) * UNIT) for p in _GRID], np.int64)
"""Cost of a marked bit at each density of the grid."""
BLANK = np.array([round(-math.log2(1 - p) * UNIT) for p in _GRID], np.int64)
"""Cost of an unmarked bit."""


@dataclass(frozen=True)
class CodedMasks:
    """Masks as bytes, and how many of the bits each mask took."""

    data: bytes
    codecs: tuple[str, ...]
    """For each mask: "constant" (all or none kept), "raw" or "coded"."""
    bits: tuple[int, ...]
    """For each mask: its share of ``8 * len(data)``."""


def encode(masks: Sequence[PackedMask]) -> CodedMasks:
    """Return the masks, all binary or all ternary, as bytes; ``decode`` also needs their shapes.

    >>> import torch
    >>> mask = PackedMask((4,), torch.tensor([0b1011], dtype=torch.uint8))
    >>> encode([mask]).codecs
    ('raw',)
    """
    writer = _Writer()
    keeps = [_bits(mask.keep, mask.numel) for mask in masks]
    costs, constant = [], []
    for mask, keep in zip(masks, keeps, strict=True):
        costs.append(writer.add_mask(keep, mask.shape))
        constant.append(bool(keep.all() or not keep.any()))
    for i, (mask, keep) in enumerate(zip(masks, keeps, strict=True)):
        if mask.negative is not None:
            costs[i] += writer.add_mask(_bits(mask.negative, mask.numel)[keep], (int(keep.sum()),))
    data = writer.finish()
    planes_ = [
        p.cpu().numpy().tobytes() for m in masks for p in (m.keep, m.negative) if p is not None
    ]
    raw = bytes([RAW]) + b"".join(planes_)
    if len(raw) <= len(data):
        bits = [8 * m.nbytes for m in masks]
        return CodedMasks(raw, ("raw",) * len(masks), _shares(bits, 8 * len(raw)))
    codecs = tuple("constant" if c else "coded" for c in constant)
    return CodedMasks(data, codecs, _shares(costs, 8 * len(data)))


class _Writer:
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
        by_line = np.ascontiguousarray(np.moveaxis(view, found.axis, 0))
        for k, index in enumerate(found.grid):
            self._add(self._segments, index, by_line[found.of_line == k].ravel())
        names = list(found.grid)
        for plane in planes(found.of_line, len(found.grid)):
            index, _ = suited(plane)
            self._add(self._planes, index, plane)
            names.append(index)
        self._records.append((len(found.grid) + 8 * found.axis + 16 * invert, names))
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


def _bits(packed: Tensor, size: int) -> Bits:
    plain = packed.cpu().numpy()
    return np.unpackbits(plain, count=size, bitorder="little").view(bool)


def _shares(costs: Sequence[int], total: int) -> tuple[int, ...]:
    """Whole numbers in proportion to ``costs`` that add up to ``total``."""
    sums = [0, *accumulate(max(cost, 1) for cost in costs)]
    whole = sums[-1]
    return tuple(total * b // whole - total * a // whole for a, b in pairwise(sums))


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


# -- which lines are alike ----------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How one layer's bits are divided among the shared strings."""

    axis: int
    """0: lines are rows, ``shape[0]`` of them; 1: columns, ``shape[1]``."""
    grid: tuple[int, ...]
    """Density of each class, as an index of the grid."""
    of_line: Ints
    """The class of each line."""
    cost: int
    """In 1 / 1024 bits, side information included."""


def densest(marks: int, size: int) -> tuple[int, int]:
    """Return the grid index that suits ``marks`` of ``size`` bits best, and its cost.

    >>> densest(50, 100)
    (45, 102400)
    """
    costs = marks * MARK + (size - marks) * BLANK
    best = int(np.argmin(costs))
    return best, int(costs[best])


def suited(bits: Bits) -> tuple[int, int]:
    """Return the grid index that suits some bits best, and its cost."""
    return densest(int(np.count_nonzero(bits)), bits.size)


def plan(marks: Bits) -> Plan:
    """Return the cheapest division found for a layer's marked bits, ``(rows, columns, rest)``."""
    index, cost = suited(marks)
    found = [Plan(0, (index,), np.zeros(len(marks), np.int64), cost + RECORD_BITS * UNIT)]
    for axis in (0, 1):
        lines = marks.shape[axis]
        length = marks.size // lines
        if lines >= 2 and length >= 2:
            counts = np.count_nonzero(marks, axis=(1 - axis, 2)).astype(np.int64)
            found += _divisions(counts, length, axis)
    return min(found, key=lambda each: each.cost)


def _divisions(counts: Ints, length: int, axis: int) -> Iterator[Plan]:
    """Divisions into 2 to 4 classes of lines by their numbers of marks, from quantiles on."""
    costs = counts[:, None] * MARK + (length - counts)[:, None] * BLANK  # (lines, grid)
    order = np.sort(counts)
    for classes in range(2, MAX_CLASSES + 1):
        middles = order[[(2 * k + 1) * len(order) // (2 * classes) for k in range(classes)]]
        grid = sorted({densest(int(middle), length)[0] for middle in middles})
        prior = [UNIT] * len(grid)
        of_line = np.zeros(len(counts), np.int64)
        for _ in range(6):
            of_line = np.argmin(costs[:, grid] + np.array(prior, np.int64), axis=1)
            grid, of_line = _refit(costs, of_line)
            sizes = np.bincount(of_line, minlength=len(grid))
            prior = [round(-math.log2(int(s) / len(counts)) * UNIT) for s in sizes]
        if len(grid) < 2:
            continue
        bits = int(costs[np.arange(len(counts)), np.array(grid)[of_line]].sum())
        side = sum(suited(plane)[1] for plane in planes(of_line, len(grid)))
        records = RECORD_BITS * UNIT * (2 * len(grid))
        yield Plan(axis, tuple(grid), of_line, bits + side + records)


def _refit(costs: Ints, of_line: Ints) -> tuple[list[int], Ints]:
    """The best grid index of each class that has lines, equal ones joined; and of_line to fit."""
    used = np.unique(of_line)
    chosen = [int(np.argmin(costs[of_line == k].sum(0))) for k in used]
    grid = sorted(set(chosen))
    renumber = np.zeros(int(used[-1]) + 1, np.int64)
    renumber[used] = [grid.index(c) for c in chosen]
    return grid, renumber[of_line]


def planes(of_line: Ints, classes: int) -> list[Bits]:
    """Return the class of every line as bit planes: plane k tells which lines are of class k.

    It has no bits for lines of the classes below k.

    >>> [p.tolist() for p in planes(np.array([0, 2, 1]), 3)]
    [[True, False, False], [False, True]]
    """
    return [of_line[of_line >= k] == k for k in range(classes - 1)]
