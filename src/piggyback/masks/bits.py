"""Masks at one bit a weight: to bits and back, in C order or in the order a weight lies in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from piggyback.errors import InputError

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class PackedMask:
    """A mask of ``shape`` in true bits: bit i of byte j is weight 8 j + i of the C-order flattened tensor.

    >>> pack(torch.tensor([True, False, True])).keep
    tensor([5], dtype=torch.uint8)
    """

    shape: tuple[int, ...]
    keep: Tensor
    """uint8, (ceil(n / 8),): 1 where m is not 0; bits past n are 0."""
    negative: Tensor | None = None
    """uint8, as ``keep``: 1 where m is -1; only a ternary mask has it."""

    @property
    def numel(self) -> int:
        """Number of weights."""
        return torch.Size(self.shape).numel()

    @property
    def kept(self) -> int:
        """Number of weights with m != 0."""
        return int(_popcount(self.keep.device)[self.keep.int()].sum())

    @property
    def density(self) -> float:
        """Fraction of weights with m != 0; 1.0 for a tensor without weights."""
        return self.kept / self.numel if self.numel else 1.0

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self.keep.numel() * (1 if self.negative is None else 2)

    def to(self, device: torch.device | str) -> PackedMask:
        """Return the same mask on ``device``."""
        negative = None if self.negative is None else self.negative.to(device)
        return PackedMask(self.shape, self.keep.to(device), negative)


def pack(mask: Tensor) -> PackedMask:
    """Return a bool mask, or an int8 one with values -1, 0, 1, as bits on the same device.

    >>> pack(torch.tensor([[1, 0], [-1, 1]], dtype=torch.int8)).negative
    tensor([4], dtype=torch.uint8)
    """
    shape = tuple(mask.shape)
    if mask.dtype == torch.bool:
        return PackedMask(shape, _pack_bits(mask))
    if mask.dtype != torch.int8:
        raise InputError(f"mask of dtype {mask.dtype}: expected bool or int8")
    return PackedMask(shape, _pack_bits(mask != 0), _pack_bits(mask < 0))


def unpack(packed: PackedMask) -> Tensor:
    """Return the mask as ``pack`` took it: bool, or int8 in {-1, 0, 1}; shape ``packed.shape``.

    >>> unpack(pack(torch.tensor([True, False, True])))
    tensor([ True, False,  True])
    """
    keep = _unpack_bits(packed.keep, packed.numel).view(packed.shape)
    if packed.negative is None:
        return keep
    negative = _unpack_bits(packed.negative, packed.numel).view(packed.shape)
    return keep.to(torch.int8) - 2 * negative.to(torch.int8)


def memory_order(packed: PackedMask, like: Tensor) -> PackedMask:
    """Return ``packed`` (C order) with its bits in the order that ``like`` lies in memory, for the task switch."""
    if like.is_contiguous():
        return packed
    order = _dims_in_memory(like)
    in_memory = pack(unpack(packed).permute(order))
    return PackedMask(packed.shape, in_memory.keep, in_memory.negative)


def logical_order(packed: PackedMask, like: Tensor) -> PackedMask:
    """Return what ``memory_order`` was given: bits in C order."""
    if like.is_contiguous():
        return packed
    order = _dims_in_memory(like)
    flat = PackedMask(tuple(packed.shape[d] for d in order), packed.keep, packed.negative)
    return pack(unpack(flat).permute([order.index(d) for d in range(like.ndim)]))


def is_dense(tensor: Tensor) -> bool:
    """Return whether the tensor's elements fill one block of memory, in any order of its dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def words(tensor: Tensor) -> Tensor:
    """Return a dense tensor's memory as integers of the same width, flat: what is equal here is equal to the bit."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(_WORDS[tensor.element_size()])


def _dims_in_memory(like: Tensor) -> list[int]:
    return sorted(range(like.ndim), key=lambda d: (like.stride(d), like.shape[d] > 1), reverse=True)


def _pack_bits(bits: Tensor) -> Tensor:
    flat = bits.reshape(-1).to(torch.uint8)
    if rest := -flat.numel() % 8:
        flat = torch.cat([flat, flat.new_zeros(rest)])
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=flat.device)
    return (flat.view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def _unpack_bits(packed: Tensor, numel: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(1) >> shifts) & 1).view(-1)[:numel].bool()


@lru_cache(maxsize=16)
def _popcount(device: torch.device) -> Tensor:
    return _unpack_bits(torch.arange(256, device=device).to(torch.uint8), 2048).view(256, 8).sum(1)
