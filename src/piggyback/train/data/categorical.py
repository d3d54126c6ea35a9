"""Columns whose cells come again, as labels, splits and paths do: each different cell is held, and looked at, once.

pandas has such columns by the same name; it is not needed for anything else here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

S = TypeVar("S", bound=Hashable)
T = TypeVar("T")


class Categorical(Sequence[T]):
    """The cells ``values[i]`` for each i in ``codes``, int64 (rows,); values are in the order in which rows have them.

    >>> cells = Categorical.of(["b", "a", "b"])
    >>> cells.values, cells.codes.tolist(), list(cells)
    (['b', 'a'], [0, 1, 0], ['b', 'a', 'b'])
    """

    def __init__(self, values: Sequence[T], codes: NDArray[np.int64]) -> None:
        self.values, self.codes = values, codes

    @staticmethod
    def of(cells: Iterable[S]) -> Categorical[S]:
        """Return the cells, each of which can be a key of a dict, as a column."""
        known: dict[S, int] = {}
        codes = np.fromiter((known.setdefault(cell, len(known)) for cell in cells), np.int64)
        return Categorical(list(known), codes)

    def firsts(self) -> NDArray[np.int64]:
        """Return the first row, from 0, of each value."""
        found = np.empty(len(self.values), np.int64)
        rows = np.arange(len(self.codes))
        found[self.codes[::-1]] = rows[::-1]  # of several the last stays
        return found

    def merged(self: Categorical[S]) -> Categorical[S]:
        """Return the column with equal values held once, as they may not be where they were made from others."""
        again = Categorical.of(self.values)
        return Categorical(again.values, again.codes[self.codes])

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> Any:
        return self.values[self.codes[index]]

    def __iter__(self) -> Iterator[T]:
        return map(self.values.__getitem__, self.codes.tolist())


def categorical(cells: Sequence[Any]) -> Categorical[Any]:
    """Return a column's cells with equal texts held once; of other cells each stays its own."""
    if isinstance(cells, Categorical):
        return cells
    if set(map(type, cells)) == {str}:  # 1 and True and 1.0 would be one key
        return Categorical.of(cells)
    return Categorical(cells, np.arange(len(cells)))


def read_each(cells: Sequence[Any], read: Callable[[int, Any], T]) -> Categorical[T]:
    """Return what ``read`` makes of each row's cell, given the first row, from 1, that has such a one."""
    column = categorical(cells)
    rows = (column.firsts() + 1).tolist()
    return Categorical(
        [read(at, cell) for at, cell in zip(rows, column.values, strict=True)], column.codes
    )
