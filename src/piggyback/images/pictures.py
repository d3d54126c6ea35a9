"""Images that something else holds, a data set or a column of a table: each is asked for when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Pictures(Sequence[Any]):
    """The images ``held[i]`` for each i in ``chosen``: paths, encoded bytes, PIL images or uint8 tensors (3, h, w).

    ``keys`` are numbers that follow from the contents of all that is held, uint64 (n,).

    >>> import torch
    >>> pictures = Pictures([b"first", b"second"], np.array([7, 8], np.uint64))
    >>> len(pictures.at(torch.tensor([1]))), pictures.at(torch.tensor([1]))[0]
    (1, b'second')
    """

    def __init__(
        self, held: Any, keys: NDArray[np.uint64], chosen: NDArray[np.int64] | None = None
    ) -> None:
        self.held, self._keys = held, keys
        self.chosen = np.arange(len(keys)) if chosen is None else chosen

    def at(self, indices: Tensor) -> Pictures:
        """Return the images at ``indices``, int64 (n,)."""
        return Pictures(self.held, self._keys, self.chosen[indices.numpy()])

    @property
    def keys(self) -> NDArray[np.uint64]:
        """A number for each image that follows from its content."""
        return self._keys[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Pictures: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Pictures(self.held, self._keys, self.chosen[index])
        return self.held[int(self.chosen[index])]
