"""Mask coding: exact round trips, sizes against entropy and against constriction, damage found."""

from __future__ import annotations

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from piggyback.errors import TaskFileError
from piggyback.masks.bits import PackedMask, pack, unpack
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
    packed = [pack(mask) for mask in masks]
    coded = encode(packed)
    found = decode(coded.data, [tuple(m.shape) for m in masks], ternary=ternary)
    for mask, before, after in zip(masks, packed, found, strict=True):
        assert torch.equal(unpack(after), mask)
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


@pytest.mark.parametrize("seed", range(3))
def test_even_masks_are_within_a_hundredth_of_layer_entropy(seed: int) -> None:
    masks = drawn(SHAPES * 3, seed, spread=0.0)
    assert len(round_trip(masks)) <= 1.01 * entropy_bytes(masks)


@pytest.mark.parametrize("density", [0.5, 0.6, 0.73, 0.9, 0.97, 0.99, 0.999])
def test_every_density_is_within_a_hundredth_of_entropy(density: float) -> None:
    rng = np.random.default_rng(0)
    masks = [torch.from_numpy(rng.random((1024, 1024)) < density)]
    assert len(round_trip(masks)) <= 1.01 * entropy_bytes(masks) + 16


@pytest.mark.parametrize("axis", [0, 1])
def test_uneven_lines_cost_less_than_layer_entropy(axis: int) -> None:
    masks = drawn([s for s in SHAPES if s[1] > 1] * 3, 1, spread=0.03, axis=axis)
    assert len(round_trip(masks)) < 0.97 * entropy_bytes(masks)


def test_half_kept_masks_take_a_bit_a_weight() -> None:
    mask = torch.from_numpy(np.random.default_rng(0).random(80_000) < 0.5)
    assert len(round_trip([mask])) <= 10_000 + 16


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


def test_same_masks_same_bytes() -> None:
    masks = [pack(mask) for mask in drawn(SHAPES, 3, spread=0.03)]
    assert encode(masks).data == encode(masks).data


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
    data = encode([pack(mask) for mask in masks]).data
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
            assert pack(unpack(mask)).keep.equal(mask.keep)
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


def test_packed_masks_are_not_shared_with_the_file() -> None:
    mask = pack(torch.tensor([True, False] * 8))
    found = decode(encode([mask]).data, [(16,)])[0]
    assert isinstance(found, PackedMask)
    found.keep.zero_()
    assert mask.keep.tolist() == [0x55, 0x55]
