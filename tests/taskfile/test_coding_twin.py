"""The plain twin of the mask decoder, written from docs/FORMAT.md bit by bit; both must agree."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch

from piggyback.masks.bits import pack, unpack
from piggyback.taskfile.codec.reader import decode
from piggyback.taskfile.codec.writer import encode


class Twin:
    """Decodes coded masks as the format page tells it."""

    def __init__(self, data: bytes, shapes: list[tuple[int, ...]], ternary: bool) -> None:
        self.data, self.at = data, 1
        self.strings = [
            (self.byte(), self.byte(), self.varint()) for _ in range(self.byte())
        ]  # shift, density, bytes of unary code
        self.lanes = 1 << self.byte()
        self.tail = self.varint()
        count = self.varint()
        records = [self.record() for _ in shapes]
        signs = [self.record() for _ in shapes] if ternary else []
        stop = self.at + 2 * count
        self.words = np.frombuffer(data[self.at : stop], "<u2").tolist()
        self.marked = self.marks(data[stop:])
        self.cursors = [0] * len(self.strings)
        classes = [self.classes(r, s) for r, s in zip(records, shapes, strict=True)]
        masks = [self.mask(r, s, c) for r, s, c in zip(records, shapes, classes, strict=True)]
        for values, sign in zip(masks, signs, strict=False):
            kept = [i for i, value in enumerate(values) if value]
            negative = self.mask(sign, (len(kept),), [])
            for i, flag in zip(kept, negative, strict=True):
                values[i] = -1 if flag else 1
        self.masks = masks

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def record(self) -> tuple[int, int, int, list[int]]:
        head = self.byte()
        names = [self.byte() for _ in range(max(0, 2 * (head & 7) - 1))]
        return head & 7, head >> 3 & 1, head >> 4, names

    def rans(self) -> tuple[bytes, bytes]:
        state = [self.words[2 * j] | self.words[2 * j + 1] << 16 for j in range(self.lanes)]
        used = 2 * self.lanes
        densities = [a for _, a, count in self.strings if a for _ in range(count)]
        out = bytearray()
        for i, a in enumerate(densities[: len(densities) - self.tail]):
            by_ones = [max(1, a**k * (128 - a) ** (8 - k) >> 42) for k in range(9)]
            frequency = [by_ones[bin(byte).count("1")] for byte in range(256)]
            frequency[0 if a <= 64 else 255] += 2**14 - sum(frequency)
            x = state[i % self.lanes]
            slot, symbol, start = x % 2**14, 0, 0
            while slot >= start + frequency[symbol]:
                start += frequency[symbol]
                symbol += 1
            x = frequency[symbol] * (x >> 14) + slot - start
            if x < 2**16:
                x = x << 16 | self.words[used]
                used += 1
            state[i % self.lanes] = x
            out.append(symbol)
        assert used == len(self.words)
        return bytes(out), b"".join((x - 2**16).to_bytes(2, "little") for x in state)

    def marks(self, rest: bytes) -> list[set[int]]:
        coded, payload = self.rans()
        raw = payload + rest
        coded, raw = coded + raw[: self.tail], raw[self.tail :]
        unary = []
        for _, a, count in self.strings:
            if a:
                unary.append(coded[:count])
                coded = coded[count:]
            else:
                unary.append(raw[:count])
                raw = raw[count:]
        low = [byte >> i & 1 for byte in raw for i in range(8)]
        found = []
        for (shift, _, _), code in zip(self.strings, unary, strict=True):
            positions, at, zeros = set(), -1, 0
            for bit in [byte >> i & 1 for byte in code for i in range(8)]:
                if bit:
                    at += 1 + (zeros << shift) + sum(low[i] << i for i in range(shift))
                    low, zeros = low[shift:], 0
                    positions.add(at)
                else:
                    zeros += 1
            found.append(positions)
        return found

    def take(self, name: int, count: int) -> list[int]:
        start = self.cursors[name]
        self.cursors[name] += count
        return [int(i in self.marked[name]) for i in range(start, start + count)]

    def classes(
        self, record: tuple[int, int, int, list[int]], shape: tuple[int, ...]
    ) -> list[list[int]]:
        count, axis, _, names = record
        if count < 2:
            return []
        left, found = list(range(shape[axis])), []
        for name in names[count:]:
            flags = self.take(name, len(left))
            found.append([line for line, flag in zip(left, flags, strict=True) if flag])
            left = [line for line, flag in zip(left, flags, strict=True) if not flag]
        return [*found, left]

    def mask(
        self,
        record: tuple[int, int, int, list[int]],
        shape: tuple[int, ...],
        classes: list[list[int]],
    ) -> list[int]:
        count, axis, value, names = record
        size = prod(shape)
        if count == 0:
            return [value] * size
        if count == 1:
            return [value ^ flag for flag in self.take(names[0], size)]
        values = [value] * size
        where = np.arange(size).reshape(shape)
        for name, lines in zip(names, classes, strict=False):
            for line in lines:
                indices = where.take(line, axis).ravel().tolist()
                for i, flag in zip(indices, self.take(name, len(indices)), strict=True):
                    values[i] ^= flag
        return values


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_decoder_agrees_with_its_twin(seed: int, ternary: bool) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(48, 40), (16, 48, 3), (48, 1, 3, 3), (6,), (30, 30)]
    masks = []
    for i, shape in enumerate(shapes):
        p = np.full(shape, [0.97, 0.9, 0.5, 1.0, 0.995][(i + seed) % 5])
        lines = rng.choice([0.6, 1.0], size=shape[i % len(shape)])
        p = p * lines.reshape([-1 if a == i % len(shape) else 1 for a in range(len(shape))])
        mask = torch.from_numpy(rng.random(shape) < p)
        if ternary:
            sign = torch.from_numpy(np.where(rng.random(shape) < 0.1, -1, 1)).to(torch.int8)
            mask = mask.to(torch.int8) * sign
        masks.append(mask)
    coded = encode([pack(mask) for mask in masks])
    assert coded.data[0] == 1
    twin = Twin(coded.data, shapes, ternary)
    found = decode(coded.data, shapes, ternary=ternary)
    for mask, plain, fast in zip(masks, twin.masks, found, strict=True):
        assert plain == mask.to(torch.int8).flatten().tolist()
        assert torch.equal(unpack(fast), mask)
