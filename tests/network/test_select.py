from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from piggyback.errors import SelectionError
from piggyback.network.select import select_weights


class Net(nn.Module):
    """Every kind of layer, in an order that is not alphabetical."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8)
        )
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv1d(8, 8, 1), "norm": nn.LayerNorm(8)}) for _ in range(12)
        )
        self.volume = nn.Conv3d(1, 1, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.attention = nn.MultiheadAttention(8, 2)
        self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
        self.embed = nn.Embedding(10, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 5)


@pytest.fixture
def net() -> Net:
    return Net()


def names(net: nn.Module, select: object = None, head: str | None = "head") -> list[str]:
    return list(select_weights(net, select, head=head))  # type: ignore[arg-type]


def test_default_is_every_convolution_linear_and_attention_weight(net: Net) -> None:
    assert names(net) == [
        "stem.0.weight",
        "stem.2.weight",
        *(f"blocks.{i}.conv.weight" for i in range(12)),
        "volume.weight",
        "up.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "cross.q_proj_weight",
        "cross.k_proj_weight",
        "cross.v_proj_weight",
        "cross.out_proj.weight",
    ]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("stem.*.weight", ["stem.0.weight", "stem.2.weight"]),
        ("stem", ["stem.0.weight", "stem.2.weight"]),
        ("stem.2", ["stem.2.weight"]),
        ("blocks.1?", ["blocks.10.conv.weight", "blocks.11.conv.weight"]),
        ("blocks.[01]", ["blocks.0.conv.weight", "blocks.1.conv.weight"]),
        (r"re:^blocks\.(3|7)\.", ["blocks.3.conv.weight", "blocks.7.conv.weight"]),
        ("stem.1.bias", ["stem.1.bias"]),
        ("scale", ["scale"]),
        ("embed", ["embed.weight"]),
        (nn.Embedding, ["embed.weight"]),
        (nn.Conv3d, ["volume.weight"]),
        (nn.MultiheadAttention, names(Net())[-6:]),
        (lambda name, p: p.ndim == 5, ["volume.weight"]),
        (["up", {"scale"}, nn.Conv3d], ["scale", "volume.weight", "up.weight"]),
        (("stem.0.weight", "stem"), ["stem.0.weight", "stem.2.weight"]),
    ],
)
def test_selections(net: Net, select: object, expected: list[str]) -> None:
    assert names(net, select) == expected


def test_broad_selections_leave_biases_norms_and_the_head_alone(net: Net) -> None:
    assert set(names(net, "*")) == {*names(net), "embed.weight"}
    assert names(net, nn.Linear) == ["attention.out_proj.weight", "cross.out_proj.weight"]
    assert "head.weight" not in names(net, lambda name, p: True)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("sten.*.weight", "matches no weight; 23 weights can be masked .* did you mean 'stem"),
        ("stem.0.wieght", "did you mean 'stem.0.weight'"),
        ("re:sten", "did you mean 'stem'"),
        ("re:(", "not a regular expression"),
        ("*.bias", "name other parameters in full"),
        ("stem.1", "matches 2 parameters, but no weight of a convolution"),
        ("head", "is in the head 'head'"),
        ("head.weight", "is in the head 'head'"),
        ("head.*", "is in the head 'head'"),
        (["stem", "head"], "is in the head 'head'"),
        (["stem", "nope"], "'nope' matches no weight"),
        (nn.LSTM, "the model has no LSTM"),
        (nn.BatchNorm2d, "its 1 modules of that type hold no layer weight"),
        (lambda name, p: False, "is true for none of the 70 parameters"),
        ([], "empty list"),
        (7, "of type int: expected a name, glob"),
        (nn.Linear(2, 2), "of type Linear: expected a name, glob"),
        ("", "matches no weight"),
    ],
)
def test_what_selects_nothing_is_an_error(net: Net, select: object, message: str) -> None:
    with pytest.raises(SelectionError, match=message) as caught:
        names(net, select)
    assert "\n" not in str(caught.value)


def test_a_network_without_layers_is_an_error() -> None:
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    with pytest.raises(
        SelectionError, match="no convolution or linear weight outside its head '1'"
    ):
        select_weights(net, head="1")


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_a_tensor_that_is_not_plain_floating_point_is_an_error(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[1].weight = nn.Parameter(net[1].weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(SelectionError, match=f"'1.weight' is {dtype}: expected float32"):
        select_weights(net, head="2")
    with pytest.raises(SelectionError, match=r"'1\.weight'"):
        select_weights(net, "1.weight", head="2")
    assert names(net, "0", head="2") == ["0.weight"]


def test_a_lazy_layer_is_an_error_until_it_has_a_shape() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(SelectionError, match=r"'0\.weight' has no shape yet"):
        select_weights(net, head="2")
    net(torch.zeros(1, 3, 3, 3))
    assert names(net, head="2") == ["0.weight"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.shared = self.first
        self.head = nn.Linear(8, 10)
        self.head.weight = self.embed.weight


def test_tied_weights_are_selected_once_under_their_first_name() -> None:
    net = Tied()
    assert names(net) == ["first.weight"]
    for alias in ("second", "second.weight", "shared", "shared.weight", "re:shared"):
        assert names(net, alias) == ["first.weight"], alias


def test_a_weight_tied_to_the_head_is_masked_only_when_named() -> None:
    net = Tied()
    assert names(net, "embed.weight") == ["embed.weight"]
    with pytest.raises(SelectionError, match="is in the head"):
        select_weights(net, "head.weight", head="head")


def test_layers_that_only_look_like_convolutions_and_linears() -> None:
    class Conv1D(nn.Module):  # as in transformers: (in, out), used in GPT-2
        def __init__(self) -> None:
            super().__init__()
            self.nx, self.nf = 4, 8
            self.weight = nn.Parameter(torch.zeros(4, 8))
            self.bias = nn.Parameter(torch.zeros(8))

    net = nn.Sequential(Conv1D(), timm.layers.CondConv2d(4, 4, 3), nn.Linear(8, 2))
    assert names(net, head="2") == ["0.weight", "1.weight"]


@pytest.mark.parametrize("layer", ["ScaledStdConv2d", "Conv2dSame", "StdConv2d"])
def test_timms_own_convolutions(layer: str) -> None:
    net = nn.Sequential(getattr(timm.layers, layer)(4, 4, 3), nn.Linear(4, 2))
    assert names(net, head="1") == ["0.weight"]


def test_a_parametrised_weight_is_masked_in_what_it_is_made_from() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    nn.utils.parametrizations.weight_norm(net[0])
    assert names(net, head="2") == ["0.parametrizations.weight.original1", "1.weight"]


def test_selecting_changes_nothing(net: Net) -> None:
    before = {name: p.clone() for name, p in net.named_parameters()}
    names(net, ["*", nn.Linear])
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())
    assert all(p.requires_grad for p in net.parameters())
