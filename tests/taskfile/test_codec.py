"""Mask coding: exact round trips, sizes against entropy and against constriction, damage found, a plain twin."""

from __future__ import annotations

from math import prod

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from piggyback.errors import TaskFileError
from piggyback.masks.bits import pack_mask, unpack_mask
from piggyback.taskfile.codec import rans
from piggyback.taskfile.codec.reader import decode
from piggyback.taskfile.codec.writer import encode

SHAPES = [  # EfficientNet-like: a stem, then expansion, depthwise and projection, and a head
    (32, 3, 3, 3),
    (96, 16, 1, 1),
    (96, 1, 3, 3),
    (24, 96, 1, 1),
    (144, 1, 5, 5),
    (480, 80, 1, 1),
    (480, 1, 5, 5),
    (112, 480, 1, 1),
    (672, 112, 1, 1),
    (192, 672, 1, 1),
    (1152, 192, 1, 1),
    (320, 1152, 1, 1),
    (64, 64, 3, 3),
]


def entropy_bytes(masks: list[torch.Tensor], dims: tuple[int, ...] = ()) -> float:
    """Sum over layers of N H(density) / 8, or over the slices along ``dims`` of each."""
    total = 0.0
    for mask in masks:
        lines = mask.double().movedim(dims, tuple(range(len(dims)))).flatten(len(dims))
        p = lines.mean(-1)
        h = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / np.log(2)
        total += float(h.sum()) * lines.shape[-1] / 8
    return total


def drawn(
    shapes: list[tuple[int, ...]], seed: int, spread: float, axis: int = 0
) -> list[torch.Tensor]:
    """Masks of layer densities 0.9 to 0.999; lines along ``axis`` differ by a beta distribution."""
    rng = np.random.default_rng(seed)
    masks = []
    for shape in shapes:
        density = 1 - 10 ** rng.uniform(-3, -1)
        lines = shape[axis] if spread else 1
        p = np.full(lines, density)
        if spread:
            p = rng.beta(density / spread, (1 - density) / spread, lines)
        view = [1] * len(shape)
        view[axis] = lines
        masks.append(torch.from_numpy(rng.random(shape) < p.reshape(view)))
    return masks


def round_trip(masks: list[torch.Tensor], ternary: bool = False) -> bytes:
    packed = [pack_mask(mask) for mask in masks]
    coded = encode(packed)
    found = decode(coded.data, [tuple(m.shape) for m in masks], ternary=ternary)
    for mask, before, after in zip(masks, packed, found, strict=True):
        assert torch.equal(unpack_mask(after), mask)
        assert torch.equal(after.keep, before.keep)  # the last byte's padding too
    assert sum(coded.bits) == 8 * len(coded.data) or not masks
    assert len(coded.codecs) == len(masks)
    return coded.data


@st.composite
def mask_sets(draw: st.DrawFn, ternary: bool) -> list[torch.Tensor]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = []
    for shape in draw(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=5)):
        if draw(st.booleans()):
            shape = [*shape[:2], draw(st.integers(1, 400))]
        density = draw(st.sampled_from([0.0, 0.001, 0.03, 0.3, 0.5, 0.8, 0.97, 0.999, 1.0]))
        p = np.full(shape, density)
        if draw(st.booleans()) and p.size:  # rows, columns, anything may differ
            for axis in range(p.ndim):
                scale = rng.choice([0.1, 0.9, 1.0, 1.0], size=p.shape[axis])
                p = p * scale.reshape([-1 if a == axis else 1 for a in range(p.ndim)])
        mask = torch.from_numpy(np.asarray(rng.random(shape) < p))
        if ternary:
            negative = torch.from_numpy(np.asarray(rng.random(shape) < draw(st.floats(0, 1))))
            masks.append(mask.to(torch.int8) * torch.where(negative, -1, 1).to(torch.int8))
        else:
            masks.append(mask)
    return masks


@settings(max_examples=150, deadline=None)
@given(mask_sets(ternary=False))
def test_any_binary_masks_come_back(masks: list[torch.Tensor]) -> None:
    round_trip(masks)


@settings(max_examples=100, deadline=None)
@given(mask_sets(ternary=True))
def test_any_ternary_masks_come_back(masks: list[torch.Tensor]) -> None:
    round_trip(masks, ternary=True)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 5), (7,), (8,), (1, 1, 1, 1), (3, 5, 7)])
@pytest.mark.parametrize("value", [False, True])
def test_constant_masks_cost_a_byte_or_so(shape: tuple[int, ...], value: bool) -> None:
    assert len(round_trip([torch.full(shape, value)])) <= 16


def test_constant_layers_stay_cheap_among_others() -> None:
    masks = drawn(SHAPES, 0, spread=0.0)
    alone = len(round_trip(masks))
    many = len(round_trip([*masks, *[torch.ones(256, 256, dtype=torch.bool)] * 20]))
    assert many - alone <= 20


@pytest.mark.parametrize("marks", [0, 1, 2])
@pytest.mark.parametrize("rare", [False, True])
def test_extremely_skewed_masks(marks: int, rare: bool) -> None:
    mask = torch.full((1000, 1000), not rare)
    mask.view(-1)[[0, 999_999][:marks]] = rare
    assert len(round_trip([mask])) <= 32


@pytest.mark.parametrize("density", [0.5, 0.6, 0.73, 0.9, 0.97, 0.99, 0.999])
def test_every_density_is_within_a_hundredth_of_entropy(density: float) -> None:
    rng = np.random.default_rng(0)
    masks = [torch.from_numpy(rng.random((1024, 1024)) < density)]
    assert len(round_trip(masks)) <= 1.01 * entropy_bytes(masks) + 16


@pytest.mark.parametrize("axis", [0, 1])
def test_uneven_lines_cost_less_than_layer_entropy(axis: int) -> None:
    masks = drawn([s for s in SHAPES if s[1] > 1] * 3, 1, spread=0.03, axis=axis)
    assert len(round_trip(masks)) < 0.97 * entropy_bytes(masks)


def test_signs_are_paid_for_kept_weights_alone() -> None:
    rng = np.random.default_rng(0)
    kept = torch.from_numpy(rng.random((500, 400)) < 0.25)
    negative = torch.from_numpy(rng.random((500, 400)) < 0.1)
    mask = kept.to(torch.int8) * torch.where(negative, -1, 1).to(torch.int8)
    ideal = entropy_bytes([kept]) + entropy_bytes([negative[kept]])
    assert len(round_trip([mask], ternary=True)) <= 1.01 * ideal


def test_as_small_as_constriction() -> None:
    """Against an established range coder that is told every layer's exact density."""
    masks = drawn(SHAPES * 3, 2, spread=0.0)
    coder = constriction.stream.stack.AnsCoder()
    for mask in reversed(masks):
        density = float(mask.double().mean())
        model = constriction.stream.model.Bernoulli(min(max(density, 1e-6), 1 - 1e-6))
        coder.encode_reverse(mask.view(-1).numpy().astype(np.int32), model)
    yardstick = coder.get_compressed().nbytes
    assert len(round_trip(masks)) <= 1.01 * yardstick


@pytest.mark.parametrize("ternary", [False, True])
def test_damaged_streams_are_refused_or_harmless(ternary: bool) -> None:
    """Without the file's checksum: never another exception than TaskFileError, never a bad mask."""
    rng = np.random.default_rng(4)
    masks = drawn([(40, 30), (30, 16, 3, 3), (16, 1, 3, 3)], 4, spread=0.05)
    if ternary:
        masks = [
            m.to(torch.int8) * torch.where(torch.rand(m.shape) < 0.2, -1, 1).to(torch.int8)
            for m in masks
        ]
    data = encode([pack_mask(mask) for mask in masks]).data
    shapes = [tuple(mask.shape) for mask in masks]
    refused = 0
    for _ in range(1500):
        bad = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            bad[rng.integers(min(len(bad), rng.choice([40, len(bad)])))] = rng.integers(256)
        bad = bad[: rng.integers(len(bad) // 2, len(bad) + 1)] if rng.random() < 0.3 else bad
        try:
            found = decode(bytes(bad), shapes, ternary=ternary)
        except TaskFileError:
            refused += 1
            continue
        for mask, shape in zip(found, shapes, strict=True):
            assert pack_mask(unpack_mask(mask)).keep.equal(mask.keep)
            assert mask.shape == shape
    assert refused > 1200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        b"\x01",
        b"\x01\x00",
        b"\x01\xff" + b"\x00" * 20,
        b"\x01\x01\x1f\x40\x01\x00\x00\x02\x00" + b"\x00" * 20,  # shift 31
        b"\x01\x01\x00\xff\x01\x00\x00\x02\x00" + b"\x00" * 20,  # density 255
        b"\x01\x01\x00\x20\xff\xff\xff\xff\x7f\x00\x00\x02\x01\x00" + b"\x00" * 20,  # a huge string
        b"\x01\x01\x00\x20\xff\xff\xff\xff\xff\xff\xff\xff" + b"\x00" * 20,  # an endless number
        b"\x01\x00\x20\x00\x02\x00" + b"\x00" * 20,  # 2^32 lanes
        b"\x01\x00\x00\x00\x02\x01\x00" + b"\x00" * 20,  # a string that is not there
        b"\x01\x00\x00\x00\x02\x20" + b"\x00" * 20,  # an unknown record
        b"\x00",  # raw, too short
        b"\x00\xff\xff\x01",  # raw, too long
        b"\x00\xff\xff",  # raw, bits past the end
    ],
)
def test_hostile_streams_are_refused(data: bytes) -> None:
    with pytest.raises(TaskFileError):
        decode(data, [(3, 5)])


def test_raw_signs_must_be_among_kept_weights() -> None:
    with pytest.raises(TaskFileError, match="outside"):
        decode(b"\x00\x01\x02", [(8,)], ternary=True)


@pytest.mark.parametrize("a", range(1, 128))
def test_frequencies_fill_the_table(a: int) -> None:
    table = rans.frequencies(a)
    assert table.sum() == 1 << rans.PRECISION
    assert table.min() >= 1
    ones = [table[(1 << k) - 1] for k in range(9)]
    assert sorted(ones, reverse=a <= 64) == ones


@pytest.mark.parametrize("log_lanes", [0, 3, 7])
@pytest.mark.parametrize("sizes", [(0,), (1,), (5, 0, 300), (4000,)])
def test_rans_returns_bytes_and_payload(log_lanes: int, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(sum(sizes))
    parts = [
        (a, rng.integers(0, 256, n, dtype=np.uint8))
        for a, n in zip((1, 40, 127), sizes, strict=False)
    ]
    payload = rng.integers(0, 1 << 16, 1 << log_lanes).astype(np.uint16)
    words = rans.encode(parts, payload, log_lanes)
    data, found = rans.decode(words, [(a, len(part)) for a, part in parts], log_lanes)
    assert bytes(data) == b"".join(part.tobytes() for _, part in parts)
    assert np.array_equal(found, payload)


def test_no_file_asks_for_many_python_steps() -> None:
    for symbols in (0, 1, 10**4, 10**6, 10**8):
        assert -(-symbols // (1 << rans.lanes_for(symbols))) <= rans.MAX_STEPS


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
    coded = encode([pack_mask(mask) for mask in masks])
    assert coded.data[0] == 1
    twin = Twin(coded.data, shapes, ternary)
    found = decode(coded.data, shapes, ternary=ternary)
    for mask, plain, fast in zip(masks, twin.masks, found, strict=True):
        assert plain == mask.to(torch.int8).flatten().tolist()
        assert torch.equal(unpack_mask(fast), mask)
