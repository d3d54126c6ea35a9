"""Masks at one bit per weight: ``PackedMask`` for one weight tensor, ``FlatMasks`` for all of a task in one piece.

Task files have a mask's bits in C order of its weight. Where weights are written the bits are in the order that the
weight lies in memory, which is another one for channels_last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from math import prod
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from piggyback.errors import InputError, check_is

ALIGNED = 8
"""Bytes: each mask of ``FlatMasks`` begins at a multiple, which is a whole number of words of any width."""
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class PackedMask:
    """A mask of ``shape`` in true bits: bit i of byte j is weight 8 j + i of the C-order flattened tensor.

    >>> pack_mask(torch.tensor([True, False, True])).keep
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


def pack_mask(mask: Tensor) -> PackedMask:
    """Return a bool mask, or an int8 one with values -1, 0, 1, as bits on the same device.

    >>> pack_mask(torch.tensor([[1, 0], [-1, 1]], dtype=torch.int8)).negative
    tensor([4], dtype=torch.uint8)
    """
    check_is("mask", mask, Tensor, "a tensor, bool or int8")
    shape = tuple(mask.shape)
    if mask.dtype == torch.bool:
        return PackedMask(shape, _pack_bits(mask))
    if mask.dtype != torch.int8:
        raise InputError(f"mask of dtype {mask.dtype}: expected bool or int8")
    return PackedMask(shape, _pack_bits(mask != 0), _pack_bits(mask < 0))


def unpack_mask(packed: PackedMask) -> Tensor:
    """Return the mask as ``pack_mask`` took it: bool, or int8 in {-1, 0, 1}; shape ``packed.shape``.

    >>> unpack_mask(pack_mask(torch.tensor([True, False, True])))
    tensor([ True, False,  True])
    """
    check_is("packed", packed, PackedMask, "what pack_mask returned")
    keep = _unpack_bits(packed.keep, packed.numel).view(packed.shape)
    if packed.negative is None:
        return keep
    negative = _unpack_bits(packed.negative, packed.numel).view(packed.shape)
    return keep.to(torch.int8) - 2 * negative.to(torch.int8)


def to_memory_order(packed: PackedMask, like: Tensor) -> PackedMask:
    """Return ``packed`` (C order) with its bits in the order that ``like`` lies in memory."""
    if like.is_contiguous():
        return packed
    in_memory = pack_mask(unpack_mask(packed).permute(_dims_in_memory(like)))
    return PackedMask(packed.shape, in_memory.keep, in_memory.negative)


def to_c_order(packed: PackedMask, like: Tensor) -> PackedMask:
    """Return what ``to_memory_order`` was given: bits in C order."""
    if like.is_contiguous():
        return packed
    order = _dims_in_memory(like)
    in_memory = PackedMask(tuple(like.shape[d] for d in order), packed.keep, packed.negative)
    return pack_mask(unpack_mask(in_memory).permute([order.index(d) for d in range(like.ndim)]))


def is_dense(tensor: Tensor) -> bool:
    """Return whether the tensor's elements fill one block of memory, in any order of its dimensions."""
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))


def words(tensor: Tensor) -> Tensor:
    """Return a dense tensor's memory as integers of the same width, flat: what is equal here is equal to the bit."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(_WORDS[tensor.element_size()])


# -- all masks of a task -------------------------------------------------------------------------


@dataclass(frozen=True)
class FlatBits:
    """The bits of some masks, one behind the other, each from a multiple of ``ALIGNED`` bytes on."""

    names: tuple[str, ...]
    keep: Tensor
    """uint8; padding is 0."""
    negative: Tensor | None
    """As ``keep``; None where no mask of them is ternary."""


@dataclass(frozen=True, eq=False)
class MaskLayout:
    """Where the bits of each of some masks are: a server's thousands of tasks that are alike share one."""

    parts: list[tuple[tuple[str, ...], int, bool]]
    """Names, bytes, and whether any of them is ternary."""
    places: dict[str, tuple[int, slice, tuple[int, ...], bool]]
    """By name: part, bytes in it, shape, and whether the mask is ternary."""


_layouts: WeakValueDictionary[tuple[object, ...], MaskLayout] = WeakValueDictionary()
"""Those in use, by what they describe."""


def _layout(described: tuple[tuple[str, tuple[int, ...], bool, object], ...]) -> MaskLayout:
    """The layout of masks with these names, shapes, whether ternary, and where their weights are."""
    if known := _layouts.get(described):
        return known
    found = MaskLayout([], {})
    for _, group in groupby(described, key=lambda item: item[3]):
        names, size = [], 0
        for name, shape, ternary, _ in group:
            names.append(name)
            bits = slice(size, size - (-prod(shape) // 8))
            found.places[name] = (len(found.parts), bits, shape, ternary)
            size = padded(bits.stop)
        found.parts.append((tuple(names), size, any(found.places[name][3] for name in names)))
    return _layouts.setdefault(described, found)  # whole, since other threads may take it from here


class FlatMasks(Mapping[str, PackedMask]):
    """Masks by name, in order of memory; their bits are in ``parts``, and a mask is made of them when asked for.

    There is a part for each run of weights of one dtype and device.
    """

    __slots__ = ("layout", "parts")

    def __init__(self, masks: Mapping[str, PackedMask], bases: Mapping[str, Tensor]) -> None:
        """Copy the bits of ``masks``, in order of memory, of weights like ``bases``."""
        self.layout = _layout(
            tuple(
                (n, m.shape, m.negative is not None, (bases[n].dtype, bases[n].device))
                for n, m in masks.items()
            )
        )
        self.parts: list[FlatBits] = []
        for names, size, ternary in self.layout.parts:
            with torch.inference_mode(False):  # tensors made in it cannot be written to outside
                keep = torch.zeros(size, dtype=torch.uint8, device=bases[names[0]].device)
            self.parts.append(FlatBits(names, keep, keep.clone() if ternary else None))
        for name, (part, bits, _, _) in self.layout.places.items():
            mask, flat = masks[name], self.parts[part]
            flat.keep[bits] = mask.keep
            if flat.negative is not None and mask.negative is not None:
                flat.negative[bits] = mask.negative

    def __getitem__(self, name: str) -> PackedMask:
        part, bits, shape, ternary = self.layout.places[name]
        keep, negative = self.parts[part].keep[bits], self.parts[part].negative
        return PackedMask(shape, keep, negative[bits] if ternary and negative is not None else None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.places)

    def __len__(self) -> int:
        return len(self.layout.places)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.places


def flat_masks(masks: Mapping[str, PackedMask], bases: Mapping[str, Tensor]) -> FlatMasks:
    """Return C-order masks on their base weights' devices, in those weights' order of memory.

    >>> weight = torch.ones(1, 2, 1, 2).to(memory_format=torch.channels_last)
    >>> mask = pack_mask(torch.tensor([True, False, True, True]).view(1, 2, 1, 2))
    >>> mask.keep, flat_masks({"w": mask}, {"w": weight})["w"].keep
    (tensor([13], dtype=torch.uint8), tensor([11], dtype=torch.uint8))
    """
    moved = {n: to_memory_order(m.to(bases[n].device), bases[n]) for n, m in masks.items()}
    return FlatMasks(moved, bases)


def padded(nbytes: int) -> int:
    """Return ``nbytes``, rounded up so that other bits may begin there.

    >>> padded(9)
    16
    """
    return -(-nbytes // ALIGNED) * ALIGNED


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
