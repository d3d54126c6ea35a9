"""PackNet sequences on a tiny network: who owns what, what stands still, and resuming anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from piggyback.errors import (
    CheckpointError,
    InputError,
    TrainingError,
    UnknownTaskError,
)
from piggyback.lab.packnet import FILE, STAGES, PackNetResult, train_packnet
from piggyback.lab.packnet.network import PackedNetwork, load_file, save
from piggyback.lab.packnet.sequence import hold
from piggyback.network.backbone import Backbone
from piggyback.train import EpochRow, ImageData, Listener, Recipe, Step, from_tensors, train
from piggyback.train.checkpoint import CHECKPOINT
from piggyback.train.result import RESULT


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


class Killed(BaseException):
    """Stands for the end of the process, within the test's own."""


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


def live_weights(network: PackedNetwork, task: str) -> dict[str, Tensor]:
    """The packed weights as the module of a task holds them."""
    module = network.network_for(task)
    return {name: module.get_parameter(name) for name in network.weights}


def shares(network: PackedNetwork) -> dict[str, list[int]]:
    """Per layer, the number of weights of owners 0, 1, 2, ..."""
    return {
        name: [int((owner == number).sum()) for number in range(len(network.tasks) + 1)]
        for name, owner in network.owners.items()
    }


def same(one: PackedNetwork, other: PackedNetwork) -> bool:
    return save(one) == save(other)


def test_tasks_own_exactly_the_shares_that_were_asked_for(
    backbone: Backbone, pair: dict[str, ImageData]
) -> None:
    recipes = {"colours": packing(prune=0.75), "stripes": packing(prune=0.4)}
    result = train_packnet(backbone, pair, recipes, prune_last=True)
    sizes = {name: weight.numel() for name, weight in result.network.weights.items()}
    assert sizes == {"0.weight": 324, "3.weight": 2592}
    # 0.75 of 324 is 243, of which round(0.4 * 243) = 97 are given back again.
    assert shares(result.network) == {"0.weight": [97, 81, 146], "3.weight": [778, 648, 1166]}
    for name, owner in result.network.owners.items():
        assert not result.network.weights[name][owner == 0].any(), "free weights are 0"


def test_without_prune_last_the_last_task_keeps_all_that_is_left(
    backbone: Backbone, pair: dict[str, ImageData]
) -> None:
    result = train_packnet(backbone, pair, packing(prune=0.5))
    assert shares(result.network)["0.weight"] == [0, 162, 162]
    assert [r.provenance["packnet"]["free"] for r in result.results] == [0.5, 0.0]
    assert [len(r.history) for r in result.results] == [3, 2]  # 2 epochs, then half of them again
    assert [row.epoch for row in result.results[0].history] == [1, 2, 3]


def test_it_learns_every_task_of_the_sequence(
    backbone: Backbone, pair: dict[str, ImageData]
) -> None:
    result = train_packnet(backbone, pair, packing(epochs=4))
    assert [r.name for r in result.results] == ["colours", "stripes"]
    assert all(r.method == "packnet" and r.accuracy > 85 for r in result.results)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weights_of_earlier_tasks_do_not_move_at_all(
    backbone: Backbone, pair: dict[str, ImageData], optimizer: str, tmp_path: Path
) -> None:
    # Weight decay, clipping and momentum reach for all weights that an optimizer holds.
    recipe = packing(finetune_optimizer=optimizer, weight_decay=0.1, clip=0.5)
    earlier = train_packnet(backbone, {"colours": pair["colours"]}, recipe, prune_last=True).network
    later = train_packnet(backbone, pair, recipe).network
    before, after = live_weights(earlier, "colours"), live_weights(later, "colours")
    for name in before:
        assert torch.equal(before[name].view(torch.int32), after[name].view(torch.int32)), name
        own = later.owners[name] == 2
        assert (later.weights[name][own] != 0).any(), "the later task has learned something"
    for name, tensor in earlier.shared.items():
        assert torch.equal(tensor, later.shared[name]), name


@pytest.mark.parametrize("channels_last", ["no", "yes"])
def test_predictions_of_earlier_tasks_are_the_same_to_the_bit(
    backbone: Backbone, pair: dict[str, ImageData], channels_last: str
) -> None:
    recipe = packing(channels_last=channels_last)
    earlier = train_packnet(backbone, {"colours": pair["colours"]}, recipe, prune_last=True)
    later = train_packnet(backbone, pair, recipe)
    images = torch.randn(8, 3, 16, 16)
    logits = [r.network.network_for("colours")(images) for r in (earlier, later)]
    assert torch.equal(logits[0], logits[1])
    assert logits[0].std() > 0.1
    assert later.results[0].accuracy == earlier.results[0].accuracy


def test_a_later_task_computes_with_the_weights_of_earlier_ones(
    backbone: Backbone, pair: dict[str, ImageData]
) -> None:
    network = train_packnet(backbone, pair, packing()).network
    first, second = (live_weights(network, task) for task in pair)
    for name, owner in network.owners.items():
        assert torch.equal(second[name][owner == 1], first[name][owner == 1])
        assert not first[name][owner == 2].any()
        assert torch.equal(second[name], network.weights[name])


def test_biases_and_normalisation_are_trained_with_the_first_task_only(
    backbone: Backbone, pair: dict[str, ImageData]
) -> None:
    own = backbone.module.state_dict()
    network = train_packnet(backbone, pair, packing()).network
    assert set(network.shared) == {
        "0.bias", "3.bias",
        *(f"{i}.{key}" for i in (1, 4) for key in ("weight", "bias", "running_mean", "running_var")),
    }  # fmt: skip
    assert all(not torch.equal(tensor, own[name]) for name, tensor in network.shared.items())
    network = train_packnet(backbone, pair, packing(finetune_norm="frozen")).network
    moved = {n for n, tensor in network.shared.items() if not torch.equal(tensor, own[n])}
    assert moved == {"0.bias", "3.bias"}


def test_rows_have_the_size_of_the_file_so_far_which_is_read_back(
    backbone: Backbone, pair: dict[str, ImageData], tmp_path: Path
) -> None:
    whole = train_packnet(backbone, pair, packing(), tmp_path)
    alone = train_packnet(backbone, {"colours": pair["colours"]}, packing(), prune_last=True)
    assert whole.file == tmp_path / FILE
    again = load_file(whole.file, backbone)
    for task in pair:
        x = torch.randn(6, 3, 16, 16)
        logits = [n.network_for(task)(x) for n in (whole.network, again)]
        assert torch.equal(logits[0], logits[1])
    assert [r.path for r in whole.results] == [whole.file, whole.file]
    assert whole.results[0].bytes == alone.results[0].bytes == len(save(alone.network))
    assert whole.results[1].bytes == whole.file.stat().st_size
    # One bit more for each of 2916 weights, and a head of 24 x 2 + 2 values, besides some JSON.
    grown = whole.results[1].bytes - whole.results[0].bytes
    assert 2916 // 8 + 4 * 50 < grown < 2916 // 8 + 4 * 50 + 600


def test_the_backbone_comes_back_and_nothing_global_changes(
    backbone: Backbone, pair: dict[str, ImageData]
) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    random = torch.get_rng_state()
    train_packnet(backbone, pair, packing(epochs=1)).network.network_for("stripes")
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, PackNetResult]:
    """What an undisturbed sequence ends in; made by the first test that asks."""
    return {}


# Epochs 2 + 1 are the first task's, 2 + 1 the second's; steps 6 + 3 and 4 + 2. Each stage is hit.
@pytest.mark.parametrize(
    "kill",
    [{"epoch": n} for n in (3, 5)] + [{"step": n} for n in (2, 8, 11, 14)],
    ids=lambda kill: "-".join(map(str, *kill.items())),
)
def test_a_killed_sequence_ends_in_the_same_bits(
    kill: dict[str, int],
    backbone: Backbone,
    pair: dict[str, ImageData],
    undisturbed: dict[str, PackNetResult],
    tmp_path: Path,
) -> None:
    recipe = packing(checkpoint_minutes=0)  # after every step
    if "whole" not in undisturbed:
        undisturbed["whole"] = train_packnet(backbone, pair, recipe, prune_last=True)
    whole = undisturbed["whole"]
    with pytest.raises(Killed):
        train_packnet(backbone, pair, recipe, tmp_path, prune_last=True, listener=KillAt(**kill))
    assert not (tmp_path / "2-stripes" / "pruned" / RESULT).exists()
    again = train_packnet(backbone, pair, recipe, tmp_path, prune_last=True, resume=True)
    assert same(again.network, whole.network)
    assert (tmp_path / FILE).read_bytes() == save(whole.network)
    for one, other in zip(again.results, whole.results, strict=True):
        assert (one.accuracy, one.val_accuracy, one.bytes) == (
            other.accuracy, other.val_accuracy, other.bytes,
        )  # fmt: skip
        assert [row.val_loss for row in one.history] == [row.val_loss for row in other.history]


def test_resuming_goes_on_where_it_stopped_and_a_finished_one_trains_nothing(
    backbone: Backbone, pair: dict[str, ImageData], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train_packnet(backbone, pair, packing(), tmp_path, listener=KillAt(epoch=4))
    left = KillAt()
    train_packnet(backbone, pair, packing(), tmp_path, resume=True, listener=left)
    assert left.epochs == -1  # 2 + 1 + 2 in all, 4 of them done
    idle = KillAt()
    again = train_packnet(backbone, pair, packing(), tmp_path, resume=True, listener=idle)
    assert (idle.epochs, idle.steps) == (0, 0)
    assert len(again.results) == 2


def test_a_new_sequence_in_an_old_folder_can_be_resumed(
    backbone: Backbone, pair: dict[str, ImageData], tmp_path: Path
) -> None:
    train_packnet(backbone, pair, packing(seed=1), tmp_path)
    with pytest.raises(Killed):
        train_packnet(backbone, pair, packing(), tmp_path, listener=KillAt(epoch=1))
    again = train_packnet(backbone, pair, packing(), tmp_path, resume=True)
    assert same(again.network, train_packnet(backbone, pair, packing()).network)


def test_resuming_another_sequence_is_refused(
    backbone: Backbone, pair: dict[str, ImageData], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train_packnet(backbone, pair, packing(), tmp_path, listener=KillAt(epoch=4))
    assert (tmp_path / "2-stripes" / "train" / CHECKPOINT).exists()
    with pytest.raises(CheckpointError, match=r"another run: recipe\.prune is 0\.5 there, 0\.6"):
        train_packnet(backbone, pair, packing(prune=0.6), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("names", "recipes", "options", "match"),
    [
        ([], packing(), {}, "0 tasks"),
        (["a", "b"], packing(prune=0.0), {}, "task 'a': prune 0: expected above 0"),
        (["a"], packing(prune=0.0), {"prune_last": True}, "prune 0"),
        (["a", "b"], {"a": packing()}, {}, "task 'b' has no recipe"),
        (["a", "b"], {"a": packing(), "b": packing(select=("0",))}, {}, "select"),
    ],
)
def test_tasks_and_recipes_that_do_not_go_together(
    names: list[str],
    recipes: object,
    options: dict[str, bool],
    match: str,
    backbone: Backbone,
    data: ImageData,
) -> None:
    with pytest.raises(InputError, match=match) as caught:
        train_packnet(backbone, dict.fromkeys(names, data), recipes, **options)
    assert "\n" not in str(caught.value)


def test_one_task_that_keeps_everything_is_fine_tuning(backbone: Backbone, data: ImageData) -> None:
    recipe = packing(prune=0.0)
    tuned = train(backbone, data, "colours", replace(recipe, method="finetune"))
    packed = train_packnet(backbone, {"colours": data}, recipe)
    assert packed.results[0].accuracy == tuned.accuracy
    for name, weight in packed.network.weights.items():
        assert torch.equal(weight, tuned.state[name])


class Drifting(nn.Module):
    """Counts its calls in a buffer, as no task may."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def test_a_network_that_changes_by_itself_is_refused(
    backbone: Backbone, pair: dict[str, ImageData]
) -> None:
    module = nn.Sequential(*backbone.module[:8], Drifting(), backbone.module[9])
    drifting = replace(backbone, module=module)
    with pytest.raises(TrainingError, match=r"task 'stripes': 8\.calls has moved"):
        train_packnet(drifting, pair, packing(epochs=1))


def test_an_unknown_task(backbone: Backbone, data: ImageData) -> None:
    network = train_packnet(backbone, {"colours": data}, packing(epochs=1)).network
    with pytest.raises(UnknownTaskError, match="holds colours; did you mean 'colours'"):
        network.network_for("colors")


def test_a_depthwise_network_with_a_tied_weight_packs_and_loads(
    data: ImageData, tmp_path: Path
) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 6, 1),
        nn.Conv2d(6, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).eval()  # fmt: skip
    module[4].weight = module[3].weight
    backbone = Backbone(module, "", None, "7")
    tasks = {"a": data, "b": stripes()}
    result = train_packnet(backbone, tasks, packing(epochs=1, image_size=16), tmp_path)
    assert list(result.network.weights) == ["0.weight", "1.weight", "3.weight"]
    assert shares(result.network)["1.weight"] == [0, 27, 27]
    held = load_file(result.file, backbone).network_for("a")
    assert torch.equal(held[3].weight, held[4].weight)


def test_folders_of_a_sequence(
    backbone: Backbone, pair: dict[str, ImageData], tmp_path: Path
) -> None:
    train_packnet(backbone, pair, packing(epochs=1), tmp_path)
    made = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob(RESULT)}
    assert made == {f"1-colours/{STAGES[0]}", f"1-colours/{STAGES[1]}", f"2-stripes/{STAGES[0]}"}


def test_measured_once_on_test_with_the_network_that_is_kept(
    backbone: Backbone, pair: dict[str, ImageData], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    class Stages(Listener):
        def on_stage(self, text: str) -> None:
            heard.append(text)

    result = train_packnet(backbone, pair, packing(epochs=1), listener=Stages())
    assert heard.count("measuring on test") == 3  # before and after pruning, and the last task
    for row in result.results:
        images = pair[row.name].test
        x = (images.images / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / (
            torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        )
        right = result.network.network_for(row.name)(x).argmax(1) == images.labels
        assert row.accuracy == pytest.approx(100 * right.float().mean().item())


def test_writing_fails_in_one_line(backbone: Backbone, data: ImageData, tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(CheckpointError, match=rf"{FILE}.* cannot be written"):
        train_packnet(backbone, {"colours": data}, packing(epochs=1), tmp_path)


# -- holding weights still -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.1, fused=True),
        lambda params: torch.optim.Adam(params, lr=0.1, weight_decay=0.1, amsgrad=True),
    ],
    ids=["sgd", "adamw", "adam"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_held_weights_do_not_move_and_the_others_do(
    make: object, layout: torch.memory_format
) -> None:
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


def test_a_held_weight_is_out_of_gradients_and_moments_whatever_stood_there() -> None:
    net = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    before = net.weight.detach().clone()
    hold(net, optimizer, {"weight": torch.tensor([[True, False]])})
    net(torch.tensor([[1.0, float("nan")]])).sum().backward()
    assert net.weight.grad.tolist() == [[1.0, 0.0]]
    optimizer.step()
    assert torch.equal(net.weight[0, 1], before[0, 1])
    moments = optimizer.state[net.weight]
    assert moments["exp_avg"][0, 0] != 0
    assert moments["exp_avg"][0, 1] == moments["exp_avg_sq"][0, 1] == 0
