"""Many paths in little memory: a million take their text and 16 bytes each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class PathList(Sequence[Path]):
    """Paths below a folder, each made when it is asked for.

    >>> paths = PathList.of("photos", ["a.png", "b/c.png"])
    >>> paths[1] == Path("photos/b/c.png"), len(paths)
    (True, 2)
    """

    def __init__(
        self, root: str, text: bytes, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> None:
        self.root, self.text, self.starts, self.stops = root, text, starts, stops

    @staticmethod
    def of(root: str | Path, names: Iterable[str]) -> PathList:
        """Return the paths of ``names`` below ``root``."""
        parts = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
        starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
        return PathList(str(root), b"".join(parts), starts, ends)

    def at(self, indices: Tensor) -> PathList:
        """Return the paths at ``indices``, int64 (n,); their text is shared."""
        chosen = indices.numpy()
        return PathList(self.root, self.text, self.starts[chosen], self.stops[chosen])

    def distinct(self) -> tuple[PathList, npt.NDArray[np.int64]]:
        """Return each path once, and the place of every path among these, int64 (n,).

        >>> once, places = PathList.of("photos", ["a.png", "b.png", "a.png"]).distinct()
        >>> len(once), places.tolist()
        (2, [0, 1, 0])
        """
        # Parts of the text never overlap, so of different ones the middles differ, too.
        _, rows, parts = np.unique(self.starts + self.stops, return_index=True, return_inverse=True)
        known: dict[bytes, int] = {}
        ends = zip(self.starts[rows].tolist(), self.stops[rows].tolist(), strict=True)
        places = [known.setdefault(self.text[start:stop], len(known)) for start, stop in ends]
        _, firsts = np.unique(places, return_index=True)
        return self.at(torch.from_numpy(rows[firsts])), np.array(places, np.int64)[parts]

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> PathList: ...

    def __getitem__(self, index: int | slice) -> Path | PathList:
        if isinstance(index, slice):
            return PathList(self.root, self.text, self.starts[index], self.stops[index])
        name = self.text[self.starts[index] : self.stops[index]]
        return Path(self.root, name.decode("utf-8", "surrogateescape"))
