"""LoRA: which layers, how many bytes, what it learns, what it leaves, and back from its file."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import nn

from piggyback.errors import (
    BackboneMismatchError,
    InputError,
    MissingExtraError,
    TaskFileError,
)
from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.lora.adapters import (
    Layer,
    adapt_,
    adapter_bytes,
    adapter_tensors,
    find_layers,
    largest_rank,
    own_ranks,
)
from piggyback.lab.lora.learner import load_lora
from piggyback.network.backbone import Backbone
from piggyback.network.select import select_weights
from piggyback.train import METHODS, Recipe, train
from piggyback.train.evaluation import measure
from support.training_toys import Killed, Recorder

MakeRecipe = Callable[..., Recipe]


class Mixed(nn.Module):
    """Layers that PEFT can adapt, and ones of every kind that it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.dilated = nn.Conv2d(8, 8, 3, dilation=2, padding=2)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.own = Standardised(8, 8, 3, padding=1)
        self.odd = nn.Linear(8, 8)
        self.neck = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.grouped(self.stem(x).relu()))
        x = self.own(self.up(self.dilated(x))).relu().mean((2, 3))
        x = nn.functional.linear(x, self.odd.weight)  # behind the layer's back
        x = self.neck(x)[None]
        return self.head(self.attention(x, x, x)[0][0])


class Standardised(nn.Conv2d):
    """Uses another weight than the one it holds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def mixed_layers(image_size: int | None = 12) -> tuple[nn.Module, dict[str, Layer]]:
    network = Mixed().eval()
    seen = None if image_size is None else torch.zeros(1, 3, image_size, image_size)
    return network, find_layers(network, select_weights(network, head="head"), seen)


def test_layers_that_can_be_adapted_and_those_left_alone():
    assert list(mixed_layers()[1]) == ["stem", "grouped", "neck"]
    assert list(mixed_layers(None)[1]) == ["stem", "grouped", "odd", "neck"]


def test_adapters_start_as_the_backbone_and_change_it_where_they_are_trained():
    network, layers = mixed_layers()
    x = torch.randn(2, 3, 12, 12)
    before = network(x)
    adapt_(network, own_ranks(layers, 3))
    assert torch.equal(network(x), before)
    tensors = adapter_tensors(network, layers)
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert trained == {id(p) for p in tensors.values()}
    for name in layers:
        with torch.no_grad():
            tensors[f"{name}.lora_B.weight"].fill_(0.1)
            assert not torch.allclose(network(x), before), name
            tensors[f"{name}.lora_B.weight"].zero_()


def test_an_adapter_adds_b_times_a_to_the_weight():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten()).eval()
    plain = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    plain.load_state_dict(network[0].state_dict())
    adapt_(network, {"0": 2})
    down, up = adapter_tensors(network, ["0"]).values()
    with torch.no_grad():
        up.normal_()
        plain.weight += torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    x = torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(network(x), plain(x).flatten(1))


def test_names_that_end_alike_are_told_apart():
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2))
    adapt_(network, {"0": 1, "2": 2})
    adapted = adapter_tensors(network, ["0", "2"])
    assert adapted["0.lora_A.weight"].shape == (1, 4)
    assert adapted["2.lora_A.weight"].shape == (2, 4)
    assert type(network[1][0]) is nn.Linear


@pytest.mark.parametrize("rank", [1, 2, 3, 6, 7, 40])
def test_bytes_are_those_of_the_adapters_that_peft_makes(rank):
    network, layers = mixed_layers()
    ranks = own_ranks(layers, rank)
    assert ranks["grouped"] % 2 == 0
    assert ranks["stem"] == min(rank, 8)
    adapt_(network, ranks)
    made = adapter_tensors(network, layers).values()
    assert sum(4 * p.numel() for p in made) == adapter_bytes(layers, rank)


@pytest.mark.parametrize(("extra", "rank"), [(-1, 3), (0, 4), (10**9, 8)])
def test_the_largest_rank_that_fits(extra, rank):
    layers = mixed_layers()[1]
    # Rank 4: stem 4 * (27 + 8), grouped 4 * 72 + 8 * 4 / 2 for its two groups, neck 4 * (8 + 16).
    assert adapter_bytes(layers, 4) == 4 * (140 + 304 + 96)
    assert largest_rank(layers, adapter_bytes(layers, 4) + extra) == rank
    least = adapter_bytes(layers, 1)
    with pytest.raises(InputError, match=f"rank 1 on 3 layers need {least} bytes"):
        largest_rank(layers, least - 1)


def test_by_default_one_bit_a_weight(backbone, data, recipe, tmp_path):
    widened = wide(backbone)
    weights = select_weights(widened.module, head=widened.head)
    bits = sum(w.numel() for w in weights.values())
    result = train(widened, data, "a", recipe("lora", epochs=1), tmp_path)
    notes = notes_of(result.path)
    taken = sum(t.numel() * 4 for name, t in result.state.items() if ".lora_" in name)
    per_rank = sum(4 * (w.flatten(1).shape[1] + w.shape[0]) for w in weights.values())
    assert notes["adapter_bytes"] == taken == notes["rank"] * per_rank
    assert taken <= bits / 8 < taken + per_rank
    half = recipe("lora", epochs=1, lora_bytes=bits // 16)
    halved = train(widened, data, "a", half, tmp_path / "half")
    assert notes_of(halved.path)["rank"] == notes["rank"] // 2


def test_ranks_and_bytes_that_cannot_be(backbone, data, recipe):
    # 4 bytes * ((27 + 12) + (108 + 24)) = 684
    with pytest.raises(InputError, match=r"lora_bytes 365: .*rank 1 on 2 layers need 684 bytes"):
        train(backbone, data, "a", recipe("lora"))
    with pytest.raises(InputError, match="lora_rank 2 needs 1368 bytes, lora_bytes allows 700"):
        train(backbone, data, "a", recipe("lora", lora_rank=2, lora_bytes=700))
    for wrong in ({"lora_rank": 0}, {"lora_rank": 1.5}, {"lora_bytes": -4}):
        with pytest.raises(InputError, match="expected an integer from 1, or none"):
            recipe("lora", **wrong)
    norms_only = recipe("lora", select=("1.bias",))
    with pytest.raises(InputError, match="none of the 1 selected weights"):
        train(backbone, data, "a", norms_only)


def test_the_backbone_comes_back(backbone, data, recipe):
    module = backbone.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random = torch.get_rng_state()
    train(backbone, data, "a", recipe("lora", norm="trained", lora_rank=2, epochs=1))
    assert torch.equal(torch.get_rng_state(), random)
    assert module.state_dict().keys() == before.keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert not any(m.training for m in module.modules())


@pytest.mark.parametrize("norm", ["frozen", "affine", "trained"])
def test_it_learns_and_its_file_gives_the_same_answers(backbone, data, recipe, tmp_path, norm):
    options = recipe("lora", lora_rank=2, lora_lr=1e-2, epochs=8, norm=norm)
    result = train(backbone, data, "colours", options, tmp_path)
    assert result.accuracy >= 90
    assert result.task is None
    assert result.bits_per_weight is None
    assert result.path == tmp_path / "colours.lora.safetensors"
    assert result.bytes == result.path.stat().st_size
    state = set(result.state)
    lora = {f"{layer}.lora_{part}.weight" for layer in "03" for part in "AB"}
    scales = {f"{layer}.{key}" for layer in "14" for key in ("weight", "bias")}
    learned = ("running_mean", "running_var", "num_batches_tracked")
    statistics = {f"{layer}.{key}" for layer in "14" for key in learned}
    more = {"frozen": set(), "affine": scales, "trained": scales | statistics}
    assert state == lora | {"9.weight", "9.bias"} | more[norm]
    random = torch.get_rng_state()
    network = load_lora(result.path, backbone)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in network.modules())
    again = measure(network, data.test, backbone.preprocessing, device=torch.device("cpu"))
    assert again.accuracy == result.accuracy
    plain = copy.deepcopy(backbone.module)
    plain[9] = network[9]
    x = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(plain.eval()(x), network(x))


def test_frozen_normalisation_stays_and_grouped_convolutions_are_trained(data, recipe, tmp_path):
    backbone = Backbone(Mixed().eval(), "", Preprocessing(16), "head")
    options = recipe("lora", lora_rank=3, epochs=2, lora_lr=1e-2)
    result = train(backbone, data, "a", options, tmp_path)
    notes = notes_of(result.path)
    assert notes["targets"]["grouped"] == {"rank": 4, "alpha": 4}
    left = ["depthwise", "dilated", "up", "own", "odd", "attention.in_proj", "attention.out_proj"]
    weights = dict(backbone.module.named_parameters())
    names = [name + ("_weight" if name.endswith("in_proj") else ".weight") for name in left]
    assert notes["left_alone"] == {name: weights[name].numel() for name in names}
    assert result.state["grouped.lora_B.weight"].abs().max() > 0
    network = load_lora(result.path, backbone)
    scored = measure(network, data.test, Preprocessing(16), device=torch.device("cpu"))
    assert scored.accuracy == result.accuracy


def test_resumed_runs_end_in_the_same_bits(backbone, data, recipe, tmp_path):
    options = recipe("lora", epochs=4, lora_rank=2, norm="trained", channels_last="yes")
    with pytest.raises(Killed):
        train(backbone, data, "a", options, tmp_path, listener=Recorder(kill_epoch=2))
    resumed = train(backbone, data, "a", options, tmp_path, resume=True)
    whole = train(backbone, data, "a", options)
    assert [row.val_loss for row in resumed.history] == [row.val_loss for row in whole.history]
    assert resumed.state.keys() == whole.state.keys()
    for name, tensor in whole.state.items():
        assert torch.equal(tensor, resumed.state[name]), name


def test_bfloat16_trains(backbone, data, recipe):
    options = {"lora_rank": 2, "lora_lr": 1e-2, "amp": "bf16", "channels_last": "yes"}
    result = train(backbone, data, "a", recipe("lora", epochs=8, **options))
    assert result.accuracy > 60
    assert result.state["0.lora_A.weight"].dtype == torch.float32


def test_a_file_on_another_backbone_or_damaged(backbone, data, recipe, tmp_path):
    result = train(backbone, data, "a", recipe("lora", lora_rank=2, epochs=1), tmp_path)
    tensors, text = load_tensors(result.path), json.dumps(notes_of(result.path))
    bad = tmp_path / "bad.safetensors"

    def refused(values: dict[str, torch.Tensor], metadata: dict[str, str], match: str) -> None:
        save_tensors(values, bad, metadata)
        with pytest.raises(TaskFileError, match=match) as caught:
            load_lora(bad, backbone)
        assert str(caught.value).startswith(f"{bad}: ")
        assert "\n" not in str(caught.value)

    refused(tensors, {}, "expected a file of the method lora")
    refused(tensors, {"lora": "[1]"}, "metadata 'lora'")
    refused(tensors, {"lora": "{}"}, "targets: Field required")
    refused(tensors, {"lora": text.replace('"alpha": 2', '"alpha": -2')}, r"targets\.0\.alpha")
    fewer = {name: tensor for name, tensor in tensors.items() if name != "3.lora_B.weight"}
    refused(fewer, {"lora": text}, r"'3\.lora_B\.weight' is missing .*\(24, 2, 1, 1\)")
    refused({**tensors, "0.weight": torch.zeros(2)}, {"lora": text}, r"'0\.weight' is \(2,\)")
    wider = {**tensors, "0.lora_A.weight": torch.zeros(5, 3, 3, 3)}
    refused(wider, {"lora": text}, r"is \(5, 3, 3, 3\) .*expected \(2, 3, 3, 3\)")
    refused(tensors, {"lora": text.replace('"rank": 2', '"rank": 900')}, "of rank 900")
    bad.write_bytes(result.path.read_bytes()[:-9])
    with pytest.raises(TaskFileError, match="cannot be read"):
        load_lora(bad, backbone)
    with torch.no_grad():
        backbone.module[0].weight.mul_(2)
    with pytest.raises(BackboneMismatchError, match="load the backbone that it was trained on"):
        load_lora(result.path, backbone.module)


def test_without_peft(backbone, data, recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "lora" in METHODS
    with pytest.raises(MissingExtraError, match=r"\.\[peft\]"):
        train(backbone, data, "a", recipe("lora", lora_rank=1))


def notes_of(path: Path) -> dict[str, object]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["lora"])


def wide(backbone: Backbone) -> Backbone:
    """A backbone whose mask has the bytes of several ranks."""
    module = nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(192, 300),
        nn.ReLU(),
        nn.Linear(300, 10),
    )
    return replace(backbone, module=module.eval(), head="6")
