"""The bits of all masks of a task in one piece: a run of bytes, and a shared description of what is where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from piggyback.masks.bits import PackedMask, memory_order

ALIGNED = 8
"""Bytes: each layer's bits begin at a multiple, which is a whole number of words of any width."""


@dataclass(frozen=True)
class FlatBits:
    """The bits of some masks, one behind the other, each from a multiple of 8 bytes on."""

    names: tuple[str, ...]
    keep: Tensor
    """uint8; padding is 0."""
    negative: Tensor | None
    """As ``keep``; None where no mask of them is ternary."""


@dataclass(frozen=True)
class _Place:
    """Where the bits of one mask are."""

    part: int
    start: int
    """In bytes."""
    shape: tuple[int, ...]
    ternary: bool

    @property
    def bits(self) -> slice:
        return slice(self.start, self.start - (-prod(self.shape) // 8))


class Layout:
    """Where the bits of each of some masks are: tasks that mask the same weights share one."""

    def __init__(self, masks: Mapping[str, PackedMask], bases: Mapping[str, Tensor]) -> None:
        self.places: dict[str, _Place] = {}
        self.parts: list[tuple[tuple[str, ...], torch.device, int, bool]] = []
        """Names, device, bytes, and whether any of them is ternary: a part for each dtype and device."""
        for (_, device), group in groupby(masks, key=lambda n: (bases[n].dtype, bases[n].device)):
            names, start = tuple(group), 0
            for name in names:
                mask = masks[name]
                ternary = mask.negative is not None
                self.places[name] = _Place(len(self.parts), start, mask.shape, ternary)
                start += padded(len(mask.keep))
            ternary = any(self.places[name].ternary for name in names)
            self.parts.append((names, device, start, ternary))


class Layouts:
    """The layouts of the masks there are, each once."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[object, ...], Layout] = WeakValueDictionary()

    def __reduce__(self) -> tuple[type[Layouts], tuple[()]]:
        return Layouts, ()  # a copy meets layouts of its own

    def of(self, masks: Mapping[str, PackedMask], bases: Mapping[str, Tensor]) -> Layout:
        """Return the layout of masks over these base weights."""
        key = tuple(
            (name, mask.shape, mask.negative is None, bases[name].dtype, bases[name].device)
            for name, mask in masks.items()
        )
        found = self._known.get(key)
        return self._known.setdefault(key, Layout(masks, bases)) if found is None else found


class FlatMasks(Mapping[str, PackedMask]):
    """Masks by name, in order of memory; their bits are in ``parts``, and a mask is made of them when asked for."""

    __slots__ = ("layout", "parts")

    def __init__(self, layout: Layout, masks: Iterable[PackedMask]) -> None:
        """Copy the masks' bits; ``masks`` are those of the layout, in its order."""
        self.layout = layout
        self.parts: list[FlatBits] = []
        with torch.inference_mode(False):
            for names, device, size, ternary in layout.parts:
                keep = torch.zeros(size, dtype=torch.uint8, device=device)
                self.parts.append(FlatBits(names, keep, keep.clone() if ternary else None))
        for place, mask in zip(layout.places.values(), masks, strict=True):
            part = self.parts[place.part]
            part.keep[place.bits] = mask.keep
            if part.negative is not None and mask.negative is not None:
                part.negative[place.bits] = mask.negative

    def __getitem__(self, name: str) -> PackedMask:
        place = self.layout.places[name]
        part = self.parts[place.part]
        negative = (
            part.negative[place.bits] if place.ternary and part.negative is not None else None
        )
        return PackedMask(place.shape, part.keep[place.bits], negative)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.places)

    def __len__(self) -> int:
        return len(self.layout.places)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.places


def flat_masks(
    masks: Mapping[str, PackedMask], bases: Mapping[str, Tensor], layouts: Layouts | None = None
) -> FlatMasks:
    """Return C-order masks on their base weights' devices, in those weights' order of memory.

    >>> from piggyback.masks.bits import pack
    >>> weight = torch.ones(1, 2, 1, 2).to(memory_format=torch.channels_last)
    >>> mask = pack(torch.tensor([True, False, True, True]).view(1, 2, 1, 2))
    >>> mask.keep, flat_masks({"w": mask}, {"w": weight})["w"].keep
    (tensor([13], dtype=torch.uint8), tensor([11], dtype=torch.uint8))
    """
    layout = (layouts or Layouts()).of(masks, bases)
    moved = (memory_order(m.to(bases[name].device), bases[name]) for name, m in masks.items())
    return FlatMasks(layout, moved)


def padded(nbytes: int) -> int:
    """Return ``nbytes``, rounded up so that other bits may begin there.

    >>> padded(9)
    16
    """
    return -(-nbytes // ALIGNED) * ALIGNED
