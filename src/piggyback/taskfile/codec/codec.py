"""Entropy coding of packed masks: a set of masks <-> few bytes. docs/FORMAT.md describes the bytes.

    masks  --plan-->  lines of like density, of all layers, joined into a few bit strings
    string --Rice-->  gaps between marked bits: low bits as they are, quotients in unary
    unary  --rANS-->  words

Marked bits are the rarer ones, so decoding takes time per masked-out weight, not per weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import numpy as np
import torch

from piggyback.errors import TaskFileError
from piggyback.masks.bits import PackedMask
from piggyback.taskfile.codec.reader import Bytes, Ints, Reader
from piggyback.taskfile.codec.writer import Bits, Writer

BLOCK = 1 << 15
"""Packed bytes of signs that are expanded at once."""
RAW = 0
"""First byte of masks that are not coded."""
SPARSE = 128
"""Below one mark in so many weights, marks go to packed bytes; above, to a byte a weight first."""


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

    >>> mask = PackedMask((4,), torch.tensor([0b1011], dtype=torch.uint8))
    >>> decode(encode([mask]).data, [(4,)])[0].keep
    tensor([11], dtype=torch.uint8)
    """
    writer = Writer()
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


def decode(
    data: bytes,
    shapes: Sequence[tuple[int, ...]],
    ternary: bool = False,
    kept: Sequence[int] | None = None,
) -> list[PackedMask]:
    """Return the masks of these shapes, on the CPU.

    Raises TaskFileError unless ``data`` is exactly what they need. With ``kept``, the number of
    weights that each mask keeps, wrong shapes are found before any memory of their size is taken.
    """
    sizes = [prod(shape) for shape in shapes]
    if data[:1] == bytes([RAW]):
        masks = _decode_raw(data, shapes, sizes, ternary)
        _check_kept([_ones(mask.keep.numpy()) for mask in masks], kept)
        return masks
    reader = Reader(data)
    places = [reader.read_record() for _ in shapes]
    signs = [reader.read_record() for _ in shapes] if ternary else []
    if any(sign.planes for sign in signs):
        raise TaskFileError("classes of lines among the signs; the file is damaged")
    reader.read_strings(sum(sizes) * (2 if ternary else 1))
    if kept is not None:
        pairs = zip(places, sizes, kept, strict=True)
        reader.check_marks(sum(size - k if place.ones else k for place, size, k in pairs))
    for place, shape in zip(places, shapes, strict=True):
        reader.read_planes(place, shape)
    marks = [reader.marks(place, shape) for place, shape in zip(places, shapes, strict=True)]
    found = [
        size - len(m) if place.ones else len(m)
        for place, size, m in zip(places, sizes, marks, strict=True)
    ]
    _check_kept(found, kept)
    offsets = [0, *accumulate(8 * -(-size // 8) for size in sizes)]
    marks = [m + offset for m, offset in zip(marks, offsets, strict=False)]
    packed = _scatter(marks, [place.ones for place in places], sizes, offsets)
    keeps = [packed[o // 8 : o // 8 + -(-s // 8)] for o, s in zip(offsets, sizes, strict=False)]
    negatives: list[torch.Tensor | None] = [None] * len(keeps)
    for i, sign in enumerate(signs):
        marked = reader.marks(sign, (found[i],))
        negatives[i] = torch.from_numpy(_signs(keeps[i], marked, sign.ones))
    reader.finish()
    return [
        PackedMask(shape, torch.from_numpy(keep), negative)
        for shape, keep, negative in zip(shapes, keeps, negatives, strict=True)
    ]


def _check_kept(found: Sequence[int], kept: Sequence[int] | None) -> None:
    for i, (a, b) in enumerate(zip(found, found if kept is None else kept, strict=True)):
        if a != b:
            raise TaskFileError(f"mask {i} keeps {a} weights: expected {b}; the file is damaged")


def _ones(packed: Bytes) -> int:
    return int.from_bytes(packed.tobytes(), "little").bit_count()


def _signs(keep: Bytes, marks: Ints, ones: bool) -> Bytes:
    """The sign plane, a block at a time; ``marks`` count kept weights, and others are ``ones``."""
    negative = np.zeros_like(keep)
    before = 0
    for start in range(0, len(keep), BLOCK):
        where = np.unpackbits(keep[start : start + BLOCK], bitorder="little").view(bool)
        count = int(np.count_nonzero(where))
        first, last = marks.searchsorted((before, before + count))
        flags = np.full(count, ones)
        flags[marks[first:last] - before] ^= True
        where[where] = flags
        negative[start : start + BLOCK] = np.packbits(where, bitorder="little")
        before += count
    return negative


def _scatter(marks: list[Ints], ones: list[bool], sizes: list[int], offsets: list[int]) -> Bytes:
    """Packed bits of all masks, each from a whole byte on: ``ones`` where not marked."""
    everything = np.concatenate(marks or [np.zeros(0, np.int64)])
    if SPARSE * len(everything) > offsets[-1]:
        flags = np.zeros(offsets[-1], bool)
        flags[everything] = True
        packed = np.packbits(flags, bitorder="little")
    else:
        everything.sort()
        where = everything >> 3
        bits = np.left_shift(1, everything & 7).astype(np.uint8)
        packed = np.zeros(offsets[-1] // 8, np.uint8)
        if len(where):
            first = np.flatnonzero(np.diff(where, prepend=-1))
            packed[where[first]] = np.bitwise_or.reduceat(bits, first)
    for one, size, offset in zip(ones, sizes, offsets[:-1], strict=True):
        if one and size:
            plane = packed[offset // 8 : offset // 8 + -(-size // 8)]
            np.invert(plane, out=plane)
            plane[-1] &= 255 >> (-size % 8)
    return packed


def _decode_raw(
    data: bytes, shapes: Sequence[tuple[int, ...]], sizes: Sequence[int], ternary: bool
) -> list[PackedMask]:
    lengths = [-(-size // 8) for size in sizes]
    expected = 1 + sum(lengths) * (2 if ternary else 1)
    if len(data) != expected:
        raise TaskFileError(f"{len(data)} bytes of raw masks: expected {expected}; it is damaged")
    masks = []
    at = 1
    for shape, size, length in zip(shapes, sizes, lengths, strict=True):
        keep = np.frombuffer(data, np.uint8, length, at).copy()
        at += length
        sign = None
        if ternary:
            sign = np.frombuffer(data, np.uint8, length, at).copy()
            at += length
        spare = 0xFF & ~(255 >> (-size % 8))
        if (size and keep[-1] & spare) or (sign is not None and np.any(sign & ~keep)):
            raise TaskFileError("a raw mask has bits outside its weights; the file is damaged")
        negative = None if sign is None else torch.from_numpy(sign)
        masks.append(PackedMask(shape, torch.from_numpy(keep), negative))
    return masks


def _bits(packed: torch.Tensor, size: int) -> Bits:
    plain = packed.cpu().numpy()
    return np.unpackbits(plain, count=size, bitorder="little").view(bool)


def _shares(costs: Sequence[int], total: int) -> tuple[int, ...]:
    """Whole numbers in proportion to ``costs`` that add up to ``total``."""
    sums = [0, *accumulate(max(cost, 1) for cost in costs)]
    whole = sums[-1]
    return tuple(total * b // whole - total * a // whole for a, b in pairwise(sums))
