"""PackNet sequences on a tiny network: who owns what, what stands still, and resuming anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from piggyback.errors import CheckpointError, InputError, TrainingError, UnknownTaskError
from piggyback.lab.packnet import train_packnet
from piggyback.lab.packnet.network import PackedNetwork, load_file
from piggyback.lab.packnet.sequence import FILE, hold
from piggyback.network.backbone import Backbone
from piggyback.train import (
    EpochRow,
    ImageData,
    Listener,
    Recipe,
    Step,
    TrainResult,
    from_tensors,
    train,
)
from piggyback.train.evaluation import measure
from piggyback.train.result import RESULT
from support.training_toys import Killed


def stripes() -> ImageData:
    """100 images of 16 x 16: stripes across or along, under noise."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(100) % 2
    images = (torch.rand(100, 3, 16, 16, generator=generator) * 90).byte()
    images[labels == 0, :, ::2] += 120
    images[labels == 1, :, :, ::2] += 120
    return from_tensors("stripes", ["across", "along"], (images, labels))


def packing(**options: object) -> Recipe:
    """A short recipe in float32, for sequences that must repeat to the bit."""
    settings = {"epochs": 2, "finetune_lr": 1e-2, "amp": "no", "channels_last": "no"}
    return Recipe("packnet", **{**settings, **options})


class KillAt(Listener):
    """Ends everything at the n-th end of an epoch, or at the n-th step."""

    def __init__(self, *, epoch: int = 0, step: int = 0) -> None:
        self.epochs, self.steps = epoch, step

    def on_epoch(self, row: EpochRow) -> None:
        self.epochs -= 1
        if self.epochs == 0:
            raise Killed

    def on_step(self, step: Step) -> None:
        self.steps -= 1
        if self.steps == 0:
            raise Killed


@pytest.fixture
def pair(data: ImageData) -> dict[str, ImageData]:
    return {"colours": data, "stripes": stripes()}


def packed(
    backbone: Backbone,
    data: Mapping[str, ImageData],
    out: Path,
    recipe: Recipe,
    listener: Listener | None = None,
) -> tuple[list[TrainResult], PackedNetwork]:
    """The results of a sequence, and its network, read back from the file."""
    results = train_packnet(backbone, data, dict.fromkeys(data, recipe), out, listener=listener)
    return results, load_file(out / FILE, backbone)


def shares(network: PackedNetwork) -> dict[str, list[int]]:
    """Per layer, the number of weights of owners 0, 1, 2, ..."""
    return {
        name: [int((owner == number).sum()) for number in range(len(network.tasks) + 1)]
        for name, owner in network.owners.items()
    }


def test_tasks_own_the_shares_that_were_asked_for_in_one_growing_file(backbone, pair, tmp_path):
    tasks = {**pair, "again": pair["colours"]}
    recipes = dict(
        zip(tasks, (packing(prune=0.75), packing(prune=0.4), packing(prune=0.0)), strict=True)
    )
    results = train_packnet(backbone, tasks, recipes, tmp_path)
    network = load_file(tmp_path / FILE, backbone)
    # 0.75 of 324 is 243, of which round(0.4 * 243) = 97 are given back; the last keeps all that is left.
    assert shares(network) == {"0.weight": [0, 81, 146, 97], "3.weight": [0, 648, 1166, 778]}
    free = [result.provenance["packnet"]["free"] for result in results]
    assert free == pytest.approx([0.75, 0.3, 0.0], abs=1e-3)
    # 2 epochs, then half of them again
    assert [[row.epoch for row in r.history] for r in results] == [[1, 2, 3], [1, 2, 3], [1, 2]]
    made = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob(RESULT)}
    stages = ("1-colours/train", "1-colours/pruned", "2-stripes/train", "2-stripes/pruned")
    assert made == {*stages, "3-again/train"}
    assert {result.path for result in results} == {tmp_path / FILE}
    sizes = [result.bytes for result in results]
    assert sizes[2] == (tmp_path / FILE).stat().st_size
    # One bit more for each of 2916 weights, and a head of 24 x 2 + 2 values, besides some JSON.
    assert 2916 // 8 + 4 * 50 < sizes[1] - sizes[0] < 2916 // 8 + 4 * 50 + 600


def test_it_learns_every_task_and_leaves_the_backbone_alone(backbone, pair, tmp_path):
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    random = torch.get_rng_state()
    results, network = packed(backbone, pair, tmp_path, packing(epochs=4))
    assert torch.equal(torch.get_rng_state(), random)
    assert [result.name for result in results] == ["colours", "stripes"]
    for result in results:
        assert (result.method, result.accuracy > 85) == ("packnet", True)
        again = measure(
            network.network_for(result.name),
            pair[result.name].test,
            backbone.preprocessing,
            device=torch.device("cpu"),
        )
        assert again.accuracy == result.accuracy
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with pytest.raises(UnknownTaskError, match="did you mean 'colours'"):
        network.network_for("colors")


@pytest.mark.parametrize(
    ("optimizer", "channels_last"), [("adamw", "no"), ("sgd", "no"), ("adamw", "yes")]
)
def test_a_later_task_computes_with_earlier_weights_and_does_not_move_them(
    backbone, pair, optimizer, channels_last, tmp_path
):
    # Weight decay, clipping and momentum reach for all weights that an optimizer holds.
    recipe = packing(
        finetune_optimizer=optimizer, weight_decay=0.1, clip=0.5, channels_last=channels_last
    )
    with pytest.raises(Killed):
        packed(backbone, pair, tmp_path, recipe, KillAt(epoch=4))
    earlier = load_file(tmp_path / FILE, backbone)
    _, later = packed(backbone, pair, tmp_path, recipe)
    assert [len(network.tasks) for network in (earlier, later)] == [1, 2]
    first, second = (later.network_for(task) for task in pair)
    for name, owner in later.owners.items():
        weight = later.weights[name]
        kept = [network.weights[name][owner == 1].view(torch.int32) for network in (earlier, later)]
        assert torch.equal(*kept), name
        assert weight[owner == 2].any(), "the later task has learned something"
        assert torch.equal(first.get_parameter(name), torch.where(owner == 1, weight, 0))
        assert torch.equal(second.get_parameter(name), weight)
    images = torch.randn(8, 3, 16, 16)
    logits = earlier.network_for("colours")(images)
    assert torch.equal(first(images), logits)
    assert logits.std() > 0.01


def test_biases_and_normalisation_are_trained_with_the_first_task_only(backbone, pair, tmp_path):
    own = backbone.module.state_dict()
    only = {"colours": pair["colours"]}
    _, first = packed(backbone, only, tmp_path / "first", packing(epochs=1))
    _, network = packed(backbone, pair, tmp_path / "both", packing(epochs=1))
    assert set(network.shared) == {
        "0.bias", "3.bias",
        *(f"{i}.{key}" for i in (1, 4) for key in ("weight", "bias", "running_mean", "running_var")),
    }  # fmt: skip
    assert all(not torch.equal(tensor, own[name]) for name, tensor in first.shared.items())
    _, network = packed(backbone, pair, tmp_path / "frozen", packing(finetune_norm="frozen"))
    moved = {n for n, tensor in network.shared.items() if not torch.equal(tensor, own[n])}
    assert moved == {"0.bias", "3.bias"}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, tuple[list[TrainResult], bytes]]:
    """What an undisturbed sequence ends in; made by the first test that asks."""
    return {}


# Epochs 2 + 1 are the first task's, 2 the second's; steps 6 + 3 and 4. Each stage is hit.
@pytest.mark.parametrize(
    "kill",
    [{"epoch": 3}, {"step": 2}, {"step": 8}, {"step": 12}],
    ids=lambda kill: "-".join(map(str, *kill.items())),
)
def test_a_killed_sequence_ends_in_the_same_bits(kill, backbone, pair, undisturbed, tmp_path):
    recipe = packing(checkpoint_minutes=0)  # after every step
    if not undisturbed:
        results, _ = packed(backbone, pair, tmp_path / "whole", recipe)
        undisturbed["whole"] = results, (tmp_path / "whole" / FILE).read_bytes()
    whole, data = undisturbed["whole"]
    with pytest.raises(Killed):
        packed(backbone, pair, tmp_path, recipe, KillAt(**kill))
    again, _ = packed(backbone, pair, tmp_path, recipe)
    assert (tmp_path / FILE).read_bytes() == data
    for one, other in zip(again, whole, strict=True):
        assert (one.accuracy, one.val_accuracy, one.bytes) == (
            other.accuracy, other.val_accuracy, other.bytes,
        )  # fmt: skip
        assert [row.val_loss for row in one.history] == [row.val_loss for row in other.history]
    idle = KillAt()
    packed(backbone, pair, tmp_path, recipe, idle)  # a finished one trains nothing
    assert (idle.epochs, idle.steps) == (0, 0)
    with pytest.raises(CheckpointError, match=r"another run: recipe\.prune is 0\.5 there, 0\.6"):
        packed(backbone, pair, tmp_path, replace(recipe, prune=0.6))


@pytest.mark.parametrize(
    ("names", "recipes", "match"),
    [
        ([f"t{n}" for n in range(256)], [packing()], "256 tasks: expected at most 255"),
        (["a", "b"], [packing(prune=0.0)] * 2, "task 'a': prune 0: expected above 0"),
        (["a", "b"], [packing(), packing(select=("0",))], "select"),
    ],
)
def test_tasks_and_recipes_that_do_not_go_together(names, recipes, match, backbone, data, tmp_path):
    given = dict(zip(names, recipes, strict=False))
    with pytest.raises(InputError, match=match):
        train_packnet(backbone, dict.fromkeys(names, data), given, tmp_path)


def test_one_task_that_keeps_everything_is_fine_tuning(backbone, data, tmp_path):
    recipe = packing(prune=0.0)
    tuned = train(backbone, data, "colours", replace(recipe, method="finetune"))
    (result,), network = packed(backbone, {"colours": data}, tmp_path, recipe)
    assert result.accuracy == tuned.accuracy
    for name, weight in network.weights.items():
        assert torch.equal(weight, tuned.state[name])


class Drifting(nn.Module):
    """Counts its calls in a buffer, as no task may."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def test_a_network_that_changes_by_itself_is_refused(backbone, pair, tmp_path):
    module = nn.Sequential(*backbone.module[:8], Drifting(), backbone.module[9])
    drifting = replace(backbone, module=module)
    with pytest.raises(TrainingError, match=r"task 'stripes': 8\.calls has moved"):
        packed(drifting, pair, tmp_path, packing(epochs=1))


def test_a_depthwise_network_with_a_tied_weight_packs_and_loads(data, tmp_path):
    module = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 6, 1),
        nn.Conv2d(6, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).eval()  # fmt: skip
    module[4].weight = module[3].weight
    backbone = Backbone(module, "", None, "7")
    recipe = packing(epochs=1, image_size=16)
    _, network = packed(backbone, {"a": data, "b": stripes()}, tmp_path, recipe)
    assert list(network.weights) == ["0.weight", "1.weight", "3.weight"]
    assert shares(network)["1.weight"] == [0, 27, 27]
    held = network.network_for("a")
    assert torch.equal(held[3].weight, held[4].weight)


# -- holding weights still -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.1, fused=True),
    ],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_held_weights_do_not_move_and_the_others_do(make, layout):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=layout)
    free = {"0.weight": torch.rand(8, 3, 3, 3) < 0.5, "1.weight": torch.zeros(4, 8, 3, 3).bool()}
    optimizer = make(net.parameters())
    with torch.no_grad():
        net[0].weight[~free["0.weight"]] *= torch.tensor(-0.0)  # their sign is kept too
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    hold(net, optimizer, free)
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 8, 8)).square().sum().backward()
        for name, mask in free.items():
            assert not net.get_parameter(name).grad[~mask].any()
        optimizer.step()
    for name, param in net.named_parameters():
        moved = param.view(torch.int32) != before[name].view(torch.int32)
        assert torch.equal(moved, free.get(name, torch.ones_like(moved))), name


def test_a_held_weight_is_out_of_gradients_and_moments_whatever_stood_there():
    net = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    hold(net, optimizer, {"weight": torch.tensor([[True, False]])})
    net(torch.tensor([[1.0, float("nan")]])).sum().backward()
    assert net.weight.grad.tolist() == [[1.0, 0.0]]
    optimizer.step()
    moments = optimizer.state[net.weight]
    assert moments["exp_avg"][0, 0] != 0
    assert moments["exp_avg"][0, 1] == moments["exp_avg_sq"][0, 1] == 0
