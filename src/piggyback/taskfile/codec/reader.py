"""The decoder of masks: bytes -> bit strings -> marked weights -> packed masks. docs/FORMAT.md describes the bytes.

Every number that is read is checked before it sizes anything or is counted to. Marked bits are the rarer ones, so
decoding takes time per masked-out weight, not per weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from piggyback.errors import TaskFileError
from piggyback.masks.bits import PackedMask
from piggyback.taskfile.codec import rans

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

RAW, CODED = 0, 1
"""First byte of masks that are not coded, and of those that are."""
MAX_CLASSES = 4
MAX_SHIFT = 30
BLOCK = 1 << 15
"""Packed bytes of signs that are expanded at once."""
SPARSE = 128
"""Below one mark in so many weights, marks go to packed bytes; above, to a byte per weight first."""


def decode(
    data: bytes,
    shapes: Sequence[tuple[int, ...]],
    ternary: bool = False,
    kept: Sequence[int] | None = None,
) -> list[PackedMask]:
    """Return the masks of these shapes, all binary or all ternary, on the CPU.

    Raises TaskFileError unless ``data`` is exactly what they need. With ``kept``, the number of
    weights that each mask keeps, wrong shapes are found before any memory of their size is taken.
    """
    sizes = [prod(shape) for shape in shapes]
    if data[:1] == bytes([RAW]):
        masks = _decode_raw(data, shapes, sizes, ternary)
        _check_kept([_ones(mask.keep.numpy()) for mask in masks], kept)
        return masks
    reader = _Reader(data)
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


@dataclass
class _Place:
    """Where one mask's marks are: its record, and, with classes, the lines of each class."""

    ones: bool
    """What an unmarked weight is."""
    axis: int = 0
    strings: tuple[int, ...] = ()
    """One for each class; none for a constant mask."""
    planes: tuple[int, ...] = ()
    lines: list[Ints] = field(default_factory=list)


class _Reader:
    """Reads what ``Writer`` wrote; every number is checked before it sizes anything."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 1
        if self._data[:1] != bytes([CODED]):
            raise TaskFileError(
                f"masks begin with {self._data[:1].hex() or 'nothing'}: expected 00 or 01"
            )
        self._shapes = [(*self._take(2), self._varint()) for _ in range(self._take(1)[0])]
        for shift, a, _ in self._shapes:
            if shift > MAX_SHIFT or a > 127:
                raise TaskFileError(
                    f"mask string of shift {shift} and density {a}: expected at most {MAX_SHIFT} "
                    "and 127; the file is damaged"
                )
        self._log_lanes = self._take(1)[0]
        self._tail = self._varint()
        self._words = self._varint()
        self._marks: list[Ints] = []
        self._cursors = [0] * len(self._shapes)

    def read_record(self) -> _Place:
        """Return the next mask's record."""
        head = self._take(1)[0]
        classes = head & 7
        if head >= 32 or classes > MAX_CLASSES or (head & 8 and classes < 2):
            raise TaskFileError(f"mask record {head}: no such record; the file is damaged")
        names = tuple(self._take(max(0, 2 * classes - 1)))
        if any(name >= len(self._shapes) for name in names):
            raise TaskFileError(
                f"mask record names string {max(names)}: expected below {len(self._shapes)}; "
                "the file is damaged"
            )
        return _Place(head >= 16, (head >> 3) & 1, names[:classes], names[classes:])

    def read_strings(self, weights: int) -> None:
        """Decode all strings to the positions of their marks."""
        total = sum(count for _, a, count in self._shapes if a)
        # a bit of unary code stands for a weight, or for a line in one of its three planes
        bound = MAX_CLASSES * weights + 8 * len(self._shapes)
        if 8 * sum(count for _, _, count in self._shapes) > bound:
            raise TaskFileError(f"mask strings longer than {weights} weights need; it is damaged")
        if self._log_lanes > rans.MAX_LOG_LANES or total > rans.MAX_STEPS << self._log_lanes:
            raise TaskFileError(
                f"2^{self._log_lanes} lanes for {total} bytes of mask strings: expected at most "
                f"2^{rans.MAX_LOG_LANES}, and {rans.MAX_STEPS} bytes each; the file is damaged"
            )
        if self._tail > total:
            raise TaskFileError(f"{self._tail} of {total} bytes are not coded; it is damaged")
        words = np.frombuffer(self._take(2 * self._words), "<u2")
        runs = [(a, count) for _, a, count in self._shapes if a]
        counts = rans.without_tail([count for _, count in runs], self._tail)
        runs = [(a, count) for (a, _), count in zip(runs, counts, strict=True)]
        coded, payload = rans.decode(words, runs, self._log_lanes)
        rest = np.frombuffer(self._data, np.uint8, offset=self._at)
        raw = np.concatenate([payload.astype("<u2").view(np.uint8), rest])
        at = self._tail + sum(count for _, a, count in self._shapes if not a)
        if at > len(raw):
            raise TaskFileError("mask bits end early; the file is damaged")
        low = np.unpackbits(raw[at:], bitorder="little")
        coded = np.concatenate([coded, raw[: self._tail]])
        at_low, at_coded, at_plain = 0, 0, self._tail
        for shift, a, count in self._shapes:
            if a:
                high, at_coded = coded[at_coded : at_coded + count], at_coded + count
            else:
                high, at_plain = raw[at_plain : at_plain + count], at_plain + count
            ones = np.unpackbits(high, bitorder="little").view(bool).nonzero()[0]
            need = len(ones) * shift
            if at_low + need > len(low):
                raise TaskFileError("mask bits end early; the file is damaged")
            self._marks.append(_positions(ones, shift, low[at_low : at_low + need]))
            at_low += need
        used = at + -(-at_low // 8)
        if len(rest) != max(0, used - 2 * len(payload)) or raw[used:].any() or low[at_low:].any():
            raise TaskFileError(f"{len(raw)} bytes of mask bits: expected {used}; it is damaged")

    def check_marks(self, wanted: int) -> None:
        """Raise if the masks should have more marks than all strings hold together."""
        found = sum(len(marks) for marks in self._marks)
        if wanted > found:
            raise TaskFileError(
                f"{found} marks in the masks: expected at least {wanted} for their shapes and "
                "numbers of kept weights; the file is damaged"
            )

    def read_planes(self, place: _Place, shape: tuple[int, ...]) -> None:
        """Find the lines of each class of one mask."""
        if place.planes and not prod(shape):
            raise TaskFileError(f"classes of lines in a mask of shape {shape}; it is damaged")
        if not place.planes:
            return
        count = three_axes(shape)[place.axis]
        left = np.arange(count, dtype=np.int64)
        for name in place.planes:
            chosen = np.zeros(len(left), bool)
            chosen[self._segment(name, len(left))] = True
            place.lines.append(left[chosen])
            left = left[~chosen]
        place.lines.append(left)

    def marks(self, place: _Place, shape: tuple[int, ...]) -> Ints:
        """Return the flat indices, C order, of a mask's marks; unsorted."""
        rows, columns, rest = three_axes(shape)
        if len(place.strings) == 1:
            return self._segment(place.strings[0], rows * columns * rest)
        length = (columns if place.axis == 0 else rows) * rest
        found = [np.zeros(0, np.int64)]
        for name, lines in zip(place.strings, place.lines, strict=True):
            marks = self._segment(name, len(lines) * length)
            line = marks // length
            offset = marks - line * length
            line = lines.take(line)
            if place.axis == 0:
                found.append(line * length + offset)
            elif rest == 1:
                found.append(offset * columns + line)
            else:
                row = offset // rest  # offset = row * rest + inner
                found.append((row * (columns - 1) + line) * rest + offset)
        return np.concatenate(found)

    def finish(self) -> None:
        """Raise if a string has marks that no mask asked for."""
        for marks, cursor in zip(self._marks, self._cursors, strict=True):
            if len(marks) and marks[-1] >= cursor:
                raise TaskFileError("a mask string goes on after its last mask; it is damaged")

    def _segment(self, name: int, size: int) -> Ints:
        start = self._cursors[name]
        self._cursors[name] = start + size
        marks = self._marks[name]
        first, last = marks.searchsorted((start, start + size))
        return marks[first:last] - start

    def _take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise TaskFileError(
                f"masks end at byte {len(self._data)}: expected more; it is cut off"
            )
        self._at += count
        return self._data[self._at - count : self._at]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 42, 7):
            byte = self._take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise TaskFileError("a length of more than 42 bits in the masks; it is damaged")


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


def three_axes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return rows, columns and the rest of a shape of any number of dimensions."""
    padded = (*shape, 1, 1)
    return padded[0], padded[1], prod(padded[2:])


def _positions(ones: Ints, shift: int, low: Bytes) -> Ints:
    """Positions of marks, from those of the 1 bits in unary code and the low bits of the gaps."""
    if not shift or not len(ones):
        return ones
    if ((int(ones[-1]) + 1) << shift) + len(ones) >= 1 << 62:
        raise TaskFileError("mask positions of more than 62 bits; the file is damaged")
    gaps = (np.diff(ones, prepend=-1) - 1) << shift
    for bit in range(shift):
        gaps |= low[bit::shift].astype(np.int64) << bit
    gaps += 1
    return np.cumsum(gaps) - 1
