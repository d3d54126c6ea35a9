"""The task switch: live weights are what the rule or the formula of a form says, and go back to the base weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from piggyback.errors import InputError, TaskStateError
from piggyback.masks import switch
from piggyback.masks.bits import PackedMask, pack_mask, unpack_mask
from piggyback.masks.rule import MaskRule, coefficient_shape, mask_of, masked_weight
from piggyback.masks.switch import LiveWeights, formed_weight
from support.nets import Convolutions, assert_same_state, same_bits, seeded, state_of

SIZES = [1, 7, 64, 65, 300, 9, 4096, 1001]


class Layers(nn.Module):
    """Weights of awkward sizes, each of the next of the given dtypes."""

    def __init__(self, dtypes: list[torch.dtype]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(size).to(dtypes[i % len(dtypes)]), requires_grad=False)
            for i, size in enumerate(SIZES)
        )


def random_masks(net: nn.Module, kind: str) -> dict[str, Tensor]:
    drawn = {name: torch.randint(-1, 2, p.shape) for name, p in net.named_parameters()}
    return {n: m > 0 if kind == "binary" else m.to(torch.int8) for n, m in drawn.items()}


@pytest.mark.parametrize("block", [64, 128, 1 << 19])
@pytest.mark.parametrize("kind", ["binary", "ternary", "mixed"])
@pytest.mark.parametrize(
    "dtypes",
    [[torch.float32], [torch.bfloat16], [torch.float32, torch.float32, torch.float64]],
    ids=["float32", "bfloat16", "several"],
)
def test_layers_are_cut_into_blocks_without_a_trace(monkeypatch, block, kind, dtypes):
    monkeypatch.setitem(switch.BLOCK, "cpu", block)
    torch.manual_seed(0)
    net = Layers(dtypes)
    base = copy.deepcopy(net)
    live = LiveWeights(net, dict(net.named_parameters()))
    for turn in range(3):
        kinds = {"mixed": "ternary" if turn % 2 else "binary"}
        masks = random_masks(net, kinds.get(kind, kind))
        if kind == "mixed" and turn % 2:  # some layers of a ternary task without a second plane
            masks = {n: m > 0 if n.endswith(("1", "4")) else m for n, m in masks.items()}
        live.write_(live.to_memory_order({name: pack_mask(mask) for name, mask in masks.items()}))
        for name, param in net.named_parameters():
            assert same_bits(param, masked_weight(base.get_parameter(name), masks[name])), name


NAMES = ["stem.0.weight", "body.depthwise.weight", "neck.weight"]


@pytest.fixture
def net():
    return seeded(Convolutions)


@pytest.fixture
def live(net):
    return LiveWeights(net.requires_grad_(False), NAMES)


def masks_for(net, names=NAMES, kind="binary"):
    values = {n: torch.randint(-1, 2, net.get_parameter(n).shape).to(torch.int8) for n in names}
    return {n: pack_mask(v if kind == "ternary" else v > 0) for n, v in values.items()}


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
                net.get_parameter(name), masked_weight(base[name], unpack_mask(masks[name]))
            )
        found = live.to_c_order(live.capture(NAMES, MaskRule(kind)))
        for name in NAMES:
            assert torch.equal(unpack_mask(found[name]), unpack_mask(masks[name]))
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
    assert (unpack_mask(mask) == -1).all()


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


def test_empty_weights_are_no_special_case():
    net = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 2)).requires_grad_(False)
    live = LiveWeights(net, ["0.weight", "1.weight"])
    masks = {
        "0.weight": pack_mask(torch.ones(3, 0, dtype=torch.bool)),
        "1.weight": PackedMask((2, 3), torch.zeros(1, dtype=torch.uint8)),
    }
    live.write_(live.to_memory_order(masks))
    assert not net[1].weight.any()
    found = live.capture(["0.weight", "1.weight"], MaskRule())
    assert [mask.density for mask in found.values()] == [1.0, 0.0]


RULES = [MaskRule(form="channel"), MaskRule("ternary", form="channel"), MaskRule(form="affine")]
MASKED = [
    "stem.0.weight",
    "body.grouped.weight",
    "body.depthwise.weight",
    "body.up.weight",
    "neck.weight",
]


def formula(base, m, k, rule):
    """W' as the papers write it."""
    m = m.to(base.dtype)
    if rule.form == "channel":
        return torch.einsum("o,o...->o...", k, base * m)
    return k[0] * base + k[1] + k[2] * m + k[3] * (base * m)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_computed_in_float32_or_wider_and_rounded_once(dtype):
    base, mask = torch.randn(5, 7, dtype=dtype), torch.rand(5, 7) < 0.5
    k = torch.randn(4)
    made = formed_weight(base, mask, k, "affine")
    wide = torch.promote_types(dtype, torch.float32)
    w, m, k = base.to(wide), mask.to(wide), k.to(wide)
    assert made.dtype == dtype
    assert torch.equal(made, (((w * k[0] + k[1]) + m * k[2]) + (w * m) * k[3]).to(dtype))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.form}-{r.kind}")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_live_weights_are_those_of_the_formula(rule, layout):
    """Grouped, depthwise, transposed convolutions and a linear layer among the weights."""
    net = seeded(Convolutions).to(memory_format=layout)
    base = state_of(net)
    live = LiveWeights(net.requires_grad_(False), MASKED)
    masks = {n: mask_of(torch.randint(-1, 2, base[n].shape), rule) for n in MASKED}
    numbers = {n: torch.randn(coefficient_shape(rule.form, tuple(base[n].shape))) for n in MASKED}
    live.write_(
        live.to_memory_order({n: pack_mask(m) for n, m in masks.items()}), numbers, rule.form
    )
    for name in MASKED:
        wanted = formula(base[name], masks[name], numbers[name], rule)
        torch.testing.assert_close(net.get_parameter(name).detach(), wanted)
    live.write_({})
    assert_same_state(net, base)
