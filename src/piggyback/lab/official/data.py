"""What the authors' files are read as: inert records, and tensors that know where their numbers lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from piggyback.errors import TaskFileError

DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
"""By the name of the storage class, without "Storage"."""

_MAX_DIMENSIONS = 64
"""Of a tensor, by torch's own limit."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names: its dotted name, nothing more."""

    dotted: str


@dataclass(eq=False)
class Record:
    """An instance of a module class: the class's name, and the attributes it was saved with."""

    name: str
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """Numbers that lie elsewhere in the file."""

    key: str
    dtype: torch.dtype
    numel: int
    """Of the whole storage, in elements."""
    start: int = 0
    """First element of this part of it."""


@dataclass(frozen=True)
class Stored:
    """A tensor whose numbers have not been read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @staticmethod
    def made(storage: Any, offset: Any, shape: Any, stride: Any) -> Stored:
        """Return the tensor; TypeError or ValueError unless its elements all lie in its storage and are no more.

        A step of 0 would make one number as many as one likes.
        """
        if type(storage) is not Storage:
            raise TypeError(f"a tensor of {type(storage).__name__}")
        if not len(shape) == len(stride) <= _MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {len(shape)} dimensions")
        shape, stride = tuple(map(natural, shape)), tuple(map(natural, stride))
        last = sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if math.prod(shape) > storage.numel or (
            0 not in shape and natural(offset) + last >= storage.numel - storage.start
        ):
            raise ValueError(f"a tensor of {shape} beyond its storage of {storage.numel}")
        return Stored(storage, natural(offset), shape, stride)


def natural(value: Any) -> int:
    """Return ``value`` if it can be a count of elements, else raise ValueError."""
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise ValueError(f"a count of type {type(value).__name__}")
    return value


def damaged(what: str) -> TaskFileError:
    """Return the error for a file that torch.save did not write so."""
    return TaskFileError(f"{what}: expected a whole file of torch.save; get it again")
