"""The switch of all layers at once: what it writes is what masking each weight by itself gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from piggyback.masks import switch
from piggyback.masks.bits import pack
from piggyback.masks.rule import masked_weight
from piggyback.masks.switch import LiveWeights
from support.nets import same_bits

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
        live.write_(live.to_memory_order({name: pack(mask) for name, mask in masks.items()}))
        for name, param in net.named_parameters():
            assert same_bits(param, masked_weight(base.get_parameter(name), masks[name])), name


def test_a_switch_made_in_inference_mode_can_be_followed_by_one_outside():
    net = Layers([torch.float32])
    live = LiveWeights(net, dict(net.named_parameters()))
    base = copy.deepcopy(net)
    with torch.inference_mode():
        live.write_(
            live.to_memory_order({n: pack(m) for n, m in random_masks(net, "binary").items()})
        )
    masks = random_masks(net, "binary")
    live.write_(live.to_memory_order({n: pack(m) for n, m in masks.items()}))
    for name, param in net.named_parameters():
        assert same_bits(param, masked_weight(base.get_parameter(name), masks[name]))


def test_a_switch_is_noticed_by_a_backward_pass_over_the_old_weights():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).requires_grad_(False)
    live = LiveWeights(net, ["1.weight"])
    mask = {"1.weight": pack(torch.eye(3).bool())}
    live.write_(mask)
    loss = net(torch.ones(1, 3, requires_grad=True)).sum()
    live.write_({})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
