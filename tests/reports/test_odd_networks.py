"""Networks of odd layouts: heads in lists, scripted parts, lazy and meta parameters, weights of other kinds."""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
from torch import Tensor, nn

from piggyback import MultiTaskModel
from piggyback.errors import BackboneError, PiggybackWarning, SelectionError, TaskStateError
from piggyback.network.head import find_head

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))


class Heads(nn.Module):
    """A body, and heads in a container, of which it calls one."""

    def __init__(self, heads: nn.Module, key: object = 0) -> None:
        super().__init__()
        self.body, self.heads, self.key = nn.Linear(4, 8), heads, key

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[self.key](self.body(x))


@pytest.mark.parametrize(
    "net",
    [
        Heads(nn.ModuleList([nn.Linear(8, 5), nn.Linear(8, 7)])),
        Heads(nn.ModuleList([mlp(), mlp()])),
        Heads(nn.ModuleDict({"x": nn.Linear(8, 5), "y": nn.Linear(8, 5)}), "x"),
        Heads(nn.ModuleDict({"x": mlp(), "y": mlp()}), "x"),
        nn.Sequential(mlp(), nn.BatchNorm1d(5, affine=False)),  # the end of a projection, no head
        nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.LayerNorm(8)),
    ],
)
def test_one_of_several_heads_is_not_guessed(net):
    with pytest.raises(SelectionError, match="head="):
        MultiTaskModel(net)


@pytest.mark.parametrize(
    ("net", "head"),
    [
        (Heads(nn.ModuleDict({"x": nn.Linear(8, 5)}), "x"), "heads.x"),
        (Heads(nn.ModuleList([mlp()])), "heads.0.2"),
    ],
)
def test_a_single_head_in_a_container_is_found(net, head):
    assert find_head(net) == head


class Mixed(nn.Module):
    """Two classifiers of different features whose outputs are added, as in LR-ASPP."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.classifier = nn.ModuleDict({"low": nn.Linear(4, 5), "high": nn.Linear(8, 5)})

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier["low"](x) + self.classifier["high"](self.body(x))


def test_classifiers_that_may_be_mixed_are_not_guessed():
    with pytest.raises(SelectionError, match="mix"):
        find_head(Mixed())


def test_heads_that_share_a_layer_are_told_apart_at_the_first_pass():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.shared = nn.Linear(4, 8), nn.Linear(8, 8)
            self.one = nn.Sequential(self.shared, nn.Linear(8, 5))
            self.two = nn.Sequential(self.shared, nn.Linear(8, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.one(self.body(x))

    with pytest.raises(SelectionError, match=r"'one'"):
        MultiTaskModel(Shared())
    model = MultiTaskModel(Shared(), head="two.1")
    model.start_task("a", 3)
    with pytest.raises(TaskStateError, match=r"two\.1"):
        model(X)
    model.release()
    model = MultiTaskModel(Shared(), head="one.1")
    model.start_task("a", 3)
    assert model(X).shape == (6, 3)


class Parts(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def stack(*widths: int) -> nn.Sequential:
    pairs = itertools.pairwise(widths)
    return nn.Sequential(*(layer for a, b in pairs for layer in (nn.Linear(a, b), nn.ReLU())))


@pytest.mark.parametrize(
    ("parts", "other"),
    [
        ({"enc": stack(4, 8), "policy": stack(8, 16, 3), "value": stack(8, 16, 1)}, "policy"),
        ({"enc": stack(4, 8), "lm_head": stack(8, 99), "choice": Parts(summary=nn.Linear(8, 1))}, "lm_head"),
        ({"enc": stack(4, 8), "labels": stack(8, 5), "bbox_predictor": stack(9, 4)}, "bbox_predictor"),
        ({"enc": stack(4, 8), "head": Parts(head=stack(8, 5), head_dist=stack(8, 5))}, "head.head_dist"),
    ],
)  # fmt: skip
def test_a_second_head_behind_other_layers_is_seen(parts, other):
    with pytest.raises(SelectionError, match=f"'{other}'"):
        MultiTaskModel(Parts(**parts))


def test_parts_that_feed_others_are_no_heads():
    parts = {"one": stack(7, 16), "two": stack(9, 24), "fc": nn.Linear(40, 5)}
    assert MultiTaskModel(Parts(**parts)).head_name == "fc"
    layers = nn.ModuleList(
        Parts(up=nn.Linear(8, 16), down=nn.Linear(16, 8), gate=nn.Linear(8, 1)) for _ in range(2)
    )
    assert MultiTaskModel(Parts(layers=layers, score=nn.Linear(8, 5))).head_name == "score"


def test_scripted_parts_are_refused_by_name():
    part = torch.jit.trace(nn.Linear(4, 8), X)
    net = nn.Sequential(part, nn.Linear(8, 8), nn.Linear(8, 5))
    with pytest.raises(SelectionError, match=r"'0'.*TorchScript"):
        MultiTaskModel(net)
    MultiTaskModel(net, select="1")


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(
    "layers",
    [
        lambda: (nn.LazyLinear(8), nn.Linear(8, 5)),
        lambda: (nn.Linear(4, 8), nn.LazyLinear(5)),
        lambda: (nn.Linear(4, 8, device="meta"), nn.Linear(8, 5)),
        lambda: (nn.Linear(4, 8), nn.Linear(8, 5, device="meta")),
    ],
)
def test_parameters_without_values_are_refused_before_anything_changes(layers):
    net = nn.Sequential(nn.Linear(4, 4), *layers())
    with pytest.raises((SelectionError, BackboneError), match=r"[12]\.(weight|bias)"):
        MultiTaskModel(net)
    assert net[0].weight.requires_grad


class Quantised(nn.Module):
    in_features, out_features = 8, 8

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(8, 8, dtype=torch.int8))


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.zeros(8, 8))


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.LSTM(8, 8), r"1\.weight_ih_l0"),
        (Raw(), r"1\.mixing"),
        (Quantised(), r"1\.weight"),
    ],
)
def test_much_that_masks_leave_out_is_said(layer, name):
    net = nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 5))
    with pytest.warns(PiggybackWarning, match=name):
        MultiTaskModel(net)


def test_embeddings_norms_and_positions_are_not_missed():
    net = nn.Sequential(nn.Embedding(50, 8), nn.LayerNorm((6, 8)), nn.Linear(8, 8), nn.Linear(8, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MultiTaskModel(net)


def test_complex_weights_beside_masked_ones_come_back_to_the_bit():
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(4, 8), nn.Linear(8, 5)
            self.tune = nn.Parameter(torch.randn(8, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((self.body(x) * self.tune).abs())

    net = Filter()
    before = net(X)
    model = MultiTaskModel(net)
    model.start_task("a", 3)
    optimizer = model.optimizer(lr=1e-2)
    for _ in range(4):
        nn.functional.cross_entropy(model(X), torch.arange(6) % 3).backward()
        optimizer.step()
    model.finish_task()
    assert torch.equal(model.release()(X), before)


def test_a_classifier_of_transformers_without_a_named_body_is_found():
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(vision_config=vision, text_config={**sizes, "vocab_size": 20})
    assert find_head(transformers.CLIPForImageClassification(config)) == "classifier"


def test_an_embedding_that_rewrites_its_rows_is_refused_until_it_stops():
    net = nn.Sequential(nn.EmbeddingBag(9, 8, max_norm=1.0), nn.Linear(8, 8), nn.Linear(8, 5))
    with pytest.raises(BackboneError, match=r"'0'.*max_norm"):
        MultiTaskModel(net)
    net[0](torch.arange(9)[None])
    net[0].max_norm = None
    model = MultiTaskModel(net)
    model.start_task("a", 3)
    for _ in range(7):
        model(torch.arange(9)[None])
    model.finish_task()


def test_a_graph_module_is_baked_and_copied_with_its_guard():
    model = MultiTaskModel(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 8), *mlp())))
    for name in ("a", "b"):
        model.start_task(name, 3)
        model.finish_task()
    assert torch.equal(model.bake("a")(X), model(X, task="a"))
    other = copy.deepcopy(model)
    other.set_task("a")
    other(X, task="b")
    assert torch.equal(other.backbone(X), model(X, task="a"))
