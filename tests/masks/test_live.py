"""Live and base weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from piggyback.errors import InputError, TaskStateError
from piggyback.masks.bits import PackedMask, pack, unpack
from piggyback.masks.rule import MaskRule, masked_weight
from piggyback.masks.switch import LiveWeights
from support.nets import Convolutions, assert_same_state, seeded, state_of

NAMES = ["stem.0.weight", "body.depthwise.weight", "neck.weight"]


@pytest.fixture
def net():
    return seeded(Convolutions)


@pytest.fixture
def live(net):
    return LiveWeights(net.requires_grad_(False), NAMES)


def masks_for(net, names=NAMES, kind="binary"):
    values = {n: torch.randint(-1, 2, net.get_parameter(n).shape).to(torch.int8) for n in names}
    return {n: pack(v if kind == "ternary" else v > 0) for n, v in values.items()}


@pytest.mark.parametrize("kind", ["binary", "ternary"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_written_is_captured_again(net, kind, layout):
    net.to(memory_format=layout)
    live = LiveWeights(net.requires_grad_(False), NAMES)
    base = state_of(net)
    for _ in range(2):
        masks = masks_for(net, kind=kind)
        live.write_(live.to_memory_order(masks))
        for name in NAMES:
            assert torch.equal(
                net.get_parameter(name), masked_weight(base[name], unpack(masks[name]))
            )
        found = live.to_c_order(live.capture(NAMES, MaskRule(kind)))
        for name in NAMES:
            assert torch.equal(unpack(found[name]), unpack(masks[name]))
    live.write_({})
    assert_same_state(net, base)


def test_weights_without_a_mask_become_base_weights(net, live):
    base = state_of(net)
    masks = masks_for(net)
    live.write_(live.to_memory_order(masks))
    live.write_(live.to_memory_order({"neck.weight": masks["neck.weight"]}))
    for name in NAMES[:2]:
        assert torch.equal(net.get_parameter(name), base[name])
    assert not torch.equal(net.neck.weight, base["neck.weight"])


def test_masks_of_mixed_kinds_and_dtypes_in_one_task(net):
    net.neck.to(torch.bfloat16)
    net.body["depthwise"].to(torch.float64)
    base = state_of(net)
    live = LiveWeights(net.requires_grad_(False), NAMES)
    masks = {
        **masks_for(net, NAMES[:2], "ternary"),
        **masks_for(net, NAMES[2:], "binary"),
    }
    live.write_(live.to_memory_order(masks))
    for name in NAMES:
        assert torch.equal(net.get_parameter(name), masked_weight(base[name], unpack(masks[name])))


def test_a_weight_that_was_added_to_is_refused(net, live):
    with torch.no_grad():
        net.neck.weight[0, 0] += 1
    with pytest.raises(TaskStateError, match=r"'neck.weight': 1 of 72 values"):
        live.capture(NAMES, MaskRule())


def test_a_negated_weight_is_a_ternary_mask_only(net, live):
    with torch.no_grad():
        net.neck.weight.neg_()
    with pytest.raises(TaskStateError, match="72 of 72"):
        live.capture(NAMES, MaskRule())
    (mask,) = [m for n, m in live.capture(NAMES, MaskRule("ternary")).items() if n == "neck.weight"]
    assert (unpack(mask) == -1).all()


def test_base_weights_are_found_by_parameter(net, live):
    base = net.neck.weight.detach().clone()
    with torch.no_grad():
        net.neck.weight.zero_()
    assert torch.equal(live.base_of(net.neck.weight), base)
    with pytest.raises(InputError, match=r"a \(12,\) tensor is not one of the masked weights"):
        live.base_of(net.neck.bias)


@pytest.mark.parametrize("move", [lambda p: p.double(), lambda p: p.t().contiguous().t()])
def test_weights_changed_without_their_base_weights_are_refused_before_a_write(net, live, move):
    net.neck.weight.data = move(net.neck.weight.data)
    before = state_of(net)
    with pytest.raises(TaskStateError, match=r"'neck.weight' is now .* move the MultiTaskModel"):
        live.write_(live.to_memory_order(masks_for(net)))
    with pytest.raises(TaskStateError, match="move the MultiTaskModel"):
        live.capture(NAMES, MaskRule())
    assert_same_state(net, before)


def test_weights_whose_memory_was_replaced_are_found_again(net, live):
    masks = live.to_memory_order(masks_for(net))
    live.write_(masks)
    expected = state_of(net)
    live.write_({})
    net.neck.weight.data = net.neck.weight.data.clone()
    live.write_(masks)
    assert_same_state(net, expected)


def test_a_copy_writes_to_the_copied_module(net, live):
    masks = live.to_memory_order(masks_for(net))
    live.write_(masks)
    net_copy, live_copy = copy.deepcopy((net, live))
    live_copy.write_({})
    assert not torch.equal(net_copy.neck.weight, net.neck.weight)
    assert_same_state(net_copy, state_of(seeded(Convolutions)))


def test_empty_weights_are_no_special_case():
    net = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 2)).requires_grad_(False)
    live = LiveWeights(net, ["0.weight", "1.weight"])
    masks = {
        "0.weight": pack(torch.ones(3, 0, dtype=torch.bool)),
        "1.weight": PackedMask((2, 3), torch.zeros(1, dtype=torch.uint8)),
    }
    live.write_(live.to_memory_order(masks))
    assert not net[1].weight.any()
    found = live.capture(["0.weight", "1.weight"], MaskRule())
    assert [mask.density for mask in found.values()] == [1.0, 0.0]
