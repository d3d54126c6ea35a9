"""Which lines of a mask are alike: the encoder's choice of rows or columns, and of their classes.

In trained masks the channels inside a block differ far more in density than the layers do: they
are the rows of one layer and the columns of the next. Every line gets one of up to four densities
of a fixed grid, where that costs less than it saves. All costs are integers, so every machine makes
the same choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

UNIT = 1024
"""Costs are in 1 / 1024 bits."""
MAX_CLASSES = 4
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
class Plan:
    """How one layer's bits are divided among the shared strings."""

    axis: int
    """0: lines are rows, ``shape[0]`` of them; 1: columns, ``shape[1]``."""
    grid: tuple[int, ...]
    """Density of each class, as an index of the grid; one class means no lines."""
    of_line: Ints | None
    """The class of each line; None with one class."""
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


def plan(marks: NDArray[np.bool_]) -> Plan:
    """Return the cheapest division found for a layer's marked bits, ``(rows, columns, rest)``."""
    total = int(np.count_nonzero(marks))
    index, cost = densest(total, marks.size)
    best = Plan(0, (index,), None, cost + RECORD_BITS * UNIT)
    for axis in (0, 1):
        lines = marks.shape[axis]
        length = marks.size // lines
        if lines < 2 or length < 2:
            continue
        counts = np.count_nonzero(marks, axis=(1 - axis, 2)).astype(np.int64)
        best = min(best, _divide(counts, length, axis), key=lambda found: found.cost)
    return best


def _divide(counts: Ints, length: int, axis: int) -> Plan:
    """The cheapest of 2 to 4 classes of lines by their numbers of marks, from quantiles on."""
    costs = counts[:, None] * MARK + (length - counts)[:, None] * BLANK  # (lines, grid)
    order = np.sort(counts)
    found = []
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
        side = sum(cost for _, cost in planes_cost(of_line, len(grid)))
        records = RECORD_BITS * UNIT * (2 * len(grid))
        found.append(Plan(axis, tuple(grid), of_line, bits + side + records))
    return min(found, key=lambda p: p.cost, default=Plan(0, (), None, 1 << 62))


def _refit(costs: Ints, of_line: Ints) -> tuple[list[int], Ints]:
    """The best grid index of each class that has lines, equal ones joined; and of_line to fit."""
    used = np.unique(of_line)
    chosen = [int(np.argmin(costs[of_line == k].sum(0))) for k in used]
    grid = sorted(set(chosen))
    renumber = np.zeros(int(used[-1]) + 1, np.int64)
    renumber[used] = [grid.index(c) for c in chosen]
    return grid, renumber[of_line]


def planes(of_line: Ints, classes: int) -> list[NDArray[np.bool_]]:
    """Return the class of every line as bit planes: plane k tells which lines are of class k.

    It has no bits for lines of the classes below k.

    >>> [p.tolist() for p in planes(np.array([0, 2, 1]), 3)]
    [[True, False, False], [False, True]]
    """
    return [of_line[of_line >= k] == k for k in range(classes - 1)]


def planes_cost(of_line: Ints, classes: int) -> list[tuple[int, int]]:
    """Return grid index and cost of each plane."""
    return [densest(int(np.count_nonzero(plane)), len(plane)) for plane in planes(of_line, classes)]
