"""Masks in one piece: what goes in comes out, and tasks that are alike share the description."""

from __future__ import annotations

import copy
import pickle

import torch

from piggyback.masks.bits import ALIGNED, flat_masks, pack, to_c_order
from support.nets import same_bits

BASES = {
    "a": torch.randn(3, 5),
    "b": torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last),
    "c": torch.randn(7).to(torch.bfloat16),
    "d": torch.randn(2, 2),
}


def drawn(seed: int, ternary: str = "b") -> dict:
    generator = torch.Generator().manual_seed(seed)
    values = {n: torch.randint(-1, 2, w.shape, generator=generator) for n, w in BASES.items()}
    return {n: pack(v.to(torch.int8) if n in ternary else v > 0) for n, v in values.items()}


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
