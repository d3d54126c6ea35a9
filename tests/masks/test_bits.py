"""Masks as true bits: the layout of the bits, every mask back as it went in, and all of a task in one piece."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from piggyback.errors import InputError
from piggyback.masks.bits import (
    ALIGNED,
    PackedMask,
    flat_masks,
    is_dense,
    pack_mask,
    to_c_order,
    to_memory_order,
    unpack_mask,
)
from piggyback.masks.rule import masked_weight
from piggyback.masks.switch import MaskWriter
from support.nets import same_bits

SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)
KINDS = st.sampled_from(["binary", "ternary"])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
SEEDS = st.integers(0, 2**31)


def mask_like(shape: tuple[int, ...], kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "binary":
        return torch.randint(0, 2, shape, generator=generator).bool()
    return torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)


def weights_like(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Weights with any bits at all: NaNs, infinities, -0.0 and subnormals among them."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 256, (*shape, size), generator=generator, dtype=torch.uint8)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    weights = raw.view(dtype).reshape(shape)
    chosen = torch.randint(0, 10, shape, generator=generator)
    return torch.where(chosen < 5, special[chosen.clamp(max=4)], weights)


def permuted(tensor: Tensor, seed: int) -> Tensor:
    """The same values, dense, with the dimensions in another order of memory."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(tensor.ndim, generator=generator).tolist()
    back = [order.index(d) for d in range(tensor.ndim)]
    return tensor.permute(order).contiguous().permute(back)


@given(SHAPES, KINDS, SEEDS)
def test_every_mask_comes_back_as_it_went_in(shape, kind, seed):
    mask = mask_like(shape, kind, seed)
    packed = pack_mask(mask)
    assert unpack_mask(packed).dtype == mask.dtype
    assert torch.equal(unpack_mask(packed), mask)
    assert packed.shape == shape
    assert packed.numel == mask.numel()
    assert packed.kept == int((mask != 0).sum())
    assert packed.density == (packed.kept / mask.numel() if mask.numel() else 1.0)
    assert packed.nbytes == -(-mask.numel() // 8) * (1 if kind == "binary" else 2)


@given(SHAPES, KINDS, SEEDS)
def test_bit_i_of_byte_j_is_weight_8j_plus_i_and_spare_bits_are_zero(shape, kind, seed):
    mask = mask_like(shape, kind, seed)
    packed = pack_mask(mask)
    flat = mask.reshape(-1).numpy()
    assert packed.keep.dtype == torch.uint8
    assert np.array_equal(packed.keep.numpy(), np.packbits(flat != 0, bitorder="little"))
    if kind == "binary":
        assert packed.negative is None
    else:
        assert np.array_equal(packed.negative.numpy(), np.packbits(flat < 0, bitorder="little"))


@settings(max_examples=200)
@given(SHAPES, KINDS, DTYPES, SEEDS)
def test_the_switch_writes_what_the_rule_says_to_the_bit(shape, kind, dtype, seed):
    mask = mask_like(shape, kind, seed)
    base = permuted(weights_like(shape, dtype, seed), seed)
    live = torch.full_like(base, 3.0)
    assert live.stride() == base.stride()
    kept = base.clone()
    write(live, base, mask)
    assert same_bits(base, kept)
    assert same_bits(live, by_rule(base, mask))


def write(live: Tensor, base: Tensor, mask: Tensor) -> None:
    MaskWriter({"w": live}, {"w": base}).write_(flat_masks({"w": pack_mask(mask)}, {"w": base}))


def by_rule(base: Tensor, mask: Tensor) -> Tensor:
    """``masked_weight``, but a NaN keeps its bits: what -NaN is differs between machines."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[base.itemsize]
    bits = base.contiguous().view(width)
    bits = torch.where(mask.to(torch.int8) < 0, bits ^ torch.iinfo(width).min, bits)
    values = torch.where(mask == 0, torch.zeros_like(bits), bits).view(base.dtype)
    numbers = ~base.isnan()
    assert torch.equal(values[numbers], masked_weight(base, mask)[numbers])
    return values


@given(SHAPES, KINDS, SEEDS)
def test_order_of_memory_and_back(shape, kind, seed):
    mask = mask_like(shape, kind, seed)
    like = permuted(torch.zeros(shape), seed)
    there = to_memory_order(pack_mask(mask), like)
    assert there.shape == shape
    lying = permuted(mask.to(torch.int8), seed)
    in_memory = lying.as_strided((lying.numel(),), (1,))
    assert torch.equal(unpack_mask(PackedMask((mask.numel(),), there.keep)), in_memory != 0)
    back = to_c_order(there, like)
    assert torch.equal(unpack_mask(back), mask)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_masks_of_other_dtypes_are_refused(dtype):
    with pytest.raises(InputError, match="expected bool or int8"):
        pack_mask(torch.ones(3).to(dtype))


def test_dense_is_one_block_of_memory_in_any_order():
    x = torch.zeros(4, 3, 2, 2)
    assert is_dense(x)
    assert is_dense(x.to(memory_format=torch.channels_last))
    assert is_dense(x.transpose(0, 2))
    assert is_dense(x[1:3])
    assert is_dense(torch.zeros(3, 1)[:, :1])
    assert not is_dense(x[:, :2])
    assert not is_dense(x[::2])
    assert not is_dense(torch.zeros(3, 1).expand(3, 4))


BASES = {
    "a": torch.randn(3, 5),
    "b": torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last),
    "c": torch.randn(7).to(torch.bfloat16),
    "d": torch.randn(2, 2),
}


def drawn(seed: int, ternary: str = "b") -> dict:
    generator = torch.Generator().manual_seed(seed)
    values = {n: torch.randint(-1, 2, w.shape, generator=generator) for n, w in BASES.items()}
    return {n: pack_mask(v.to(torch.int8) if n in ternary else v > 0) for n, v in values.items()}


def assert_same(found, masks) -> None:
    assert list(found) == list(masks)
    assert len(found) == len(masks)
    for name, mask in masks.items():
        logical = to_c_order(found[name], BASES[name])
        assert logical.shape == mask.shape
        assert same_bits(logical.keep, mask.keep)
        assert (logical.negative is None) == (mask.negative is None)
        assert mask.negative is None or same_bits(logical.negative, mask.negative)


def test_masks_come_out_as_they_went_in():
    masks = drawn(0)
    flat = flat_masks(masks, BASES)
    assert_same(flat, masks)
    assert_same(copy.deepcopy(flat), masks)
    assert_same(pickle.loads(pickle.dumps(flat)), masks)
    assert [part.names for part in flat.parts] == [("a", "b"), ("c",), ("d",)]
    assert [part.negative is None for part in flat.parts] == [False, True, True]
    assert all(len(part.keep) % ALIGNED == 0 for part in flat.parts)
    assert "a" in flat
    assert "e" not in flat


def test_the_masks_given_are_copied():
    masks = drawn(0)
    flat = flat_masks(masks, BASES)
    before = flat["a"].keep.clone()
    masks["a"].keep.zero_()
    assert torch.equal(flat["a"].keep, before)
