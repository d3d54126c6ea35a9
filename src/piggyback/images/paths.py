"""Many paths in little memory: a million take their text and 16 bytes each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
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
