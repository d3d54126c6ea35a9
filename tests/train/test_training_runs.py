"""Whole runs on a tiny network: what is learned, what is kept, what is left as it was."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as load_tensors

from piggyback.errors import (
    CheckpointError,
    InputError,
    MissingExtraError,
    TaskNameError,
    TrainingError,
)
from piggyback.masks.rule import MaskRule
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.backbone import Backbone
from piggyback.taskfile.file import load_file
from piggyback.taskfile.header import read_header
from piggyback.train import (
    EpochRow,
    ImageData,
    Recipe,
    evaluate,
    load_folder,
    logs,
    loop,
    train,
)
from piggyback.train.checkpoint import CHECKPOINT
from piggyback.train.loop import Progress
from support.training_toys import Recorder, assert_same

MakeRecipe = Callable[..., Recipe]


def contents(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}


@pytest.mark.parametrize("method", ["masks", "head", "finetune"])
@pytest.mark.parametrize("channels_last", ["no", "yes"])
def test_the_backbone_comes_back_and_nothing_global_changes(
    backbone, data, recipe, method, channels_last
):
    before, module = contents(backbone), backbone.module
    strides = {name: p.stride() for name, p in module.named_parameters()}
    random = torch.get_rng_state()
    train(backbone, data, "colours", recipe(method, channels_last=channels_last, epochs=1))
    assert torch.equal(torch.get_rng_state(), random)
    assert contents(backbone).keys() == before.keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert strides == {name: p.stride() for name, p in module.named_parameters()}
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert not any(m.training for m in module.modules())


def test_masks_learn_and_the_file_gives_the_same_answers(backbone, data, recipe, tmp_path):
    result = train(backbone, data, "colours", recipe(epochs=8), tmp_path)
    assert result.accuracy >= 90
    assert result.task is not None
    assert result.path == tmp_path / "colours.safetensors"
    header = read_header(result.path)
    assert result.bytes == result.path.stat().st_size == header.bytes_total
    assert result.bits_per_weight == header.bits_per_weight
    assert 0 < result.bits_per_weight < 8 * result.bytes / result.task.weights
    # What a notebook shows.
    for shown in map(repr, (result, result.task, header, header.info, data, backbone)):
        assert len(shown) < 900
        assert "\n" not in shown
    model = MultiTaskModel(backbone.module, head=backbone.head)
    model.load_task(result.path)
    assert evaluate(model, "colours", data.test).accuracy == result.accuracy
    model.release()
    found = load_file(result.path).info.provenance
    known = recipe(epochs=8, image_size=16)  # and what follows from the data
    expected = replace(known, augment=replace(known.augment, border="plain"))
    assert Recipe.from_json(found["recipe"]) == expected
    counts = {split: len(images) for split, images in data.splits().items()}
    assert found["data"]["counts"] == counts
    assert found["test_accuracy"] == result.accuracy
    assert found["val_accuracy"] == result.val_accuracy
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]


def test_head_and_finetune_leave_their_kind_of_result(backbone, data, recipe, tmp_path):
    head = train(backbone, data, "colours", recipe("head"), tmp_path / "head")
    assert head.task is not None
    assert not head.task.masks
    assert head.bits_per_weight is None
    tuned = train(backbone, data, "colours", recipe("finetune", finetune_lr=1e-2), tmp_path / "ft")
    assert tuned.task is None
    assert tuned.state is not None
    assert tuned.accuracy >= 90
    assert tuned.bits_per_weight is None
    assert tuned.path is not None
    assert tuned.bytes == tuned.path.stat().st_size
    for name, tensor in load_tensors(tuned.path).items():
        assert torch.equal(tensor, tuned.state[name])
    assert not torch.equal(tuned.state["0.weight"], backbone.module[0].weight)
    assert not torch.equal(tuned.state["1.running_mean"], backbone.module[1].running_mean)


def test_frozen_and_trained_normalisation(backbone, data, recipe):
    frozen = train(backbone, data, "a", recipe(epochs=1)).task
    trained = train(backbone, data, "a", recipe(epochs=1, norm="trained")).task
    assert frozen is not None
    assert trained is not None
    assert not frozen.norm
    assert not torch.equal(trained.norm["1.running_var"], backbone.module[1].running_var)
    options = recipe("finetune", epochs=1, finetune_norm="frozen")
    tuned = train(backbone, data, "a", options).state
    assert tuned is not None
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert torch.equal(tuned[name], backbone.module.state_dict()[name])


def test_the_same_seed_gives_the_same_bytes_of_masks(backbone, data, recipe):
    runs = [train(backbone, data, "a", recipe(seed=seed)).task for seed in (3, 3, 4)]
    one, same, other = (dict(task.masks) | dict(task.head) for task in runs if task)
    assert all(torch.equal(one[k].keep, same[k].keep) for k in ("0.weight", "3.weight"))
    assert torch.equal(one["weight"], same["weight"])
    assert not torch.equal(one["weight"], other["weight"])


def test_ternary_uniform_and_selected(backbone, data, recipe):
    options = recipe(rule=MaskRule("ternary"), select=("3",), clip=1.0, epochs=1, mask_lr=2e-2)
    task = train(backbone, data, "a", options).task
    assert task is not None
    assert list(task.masks) == ["3.weight"]
    assert task.masks["3.weight"].negative is not None


@pytest.mark.parametrize("method", ["masks", "head"])
def test_a_rule_with_a_form_is_refused_when_training_starts(method, backbone, data, recipe):
    with pytest.raises(InputError, match="form 'channel': expected 'plain'"):
        train(backbone, data, "a", recipe(method, rule=MaskRule(form="channel")))


def test_listener_and_logs_tell_the_same(backbone, data, recipe, tmp_path):
    heard = Recorder()
    result = train(backbone, data, "a", recipe(tracker="tensorboard"), tmp_path, listener=heard)
    assert heard.stages == ["reading images", "training the head alone", "measuring on test"]
    assert heard.ended == 1
    steps = heard.plans[0].steps
    assert [(s.epoch, s.step) for s in heard.steps] == [
        (e, s) for e in (1, 2, 3) for s in range(1, steps + 1)
    ]
    assert heard.steps[-1].seconds_left == 0
    assert tuple(heard.rows) == result.history
    best = [row for row in heard.rows if row.best][-1]
    assert best.val_accuracy == max(row.val_accuracy for row in heard.rows) == result.val_accuracy
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [EpochRow(**json.loads(line)) for line in lines] == heard.rows
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["val_accuracy"]) for row in table] == [r.val_accuracy for r in heard.rows]
    assert list((tmp_path / "tensorboard").iterdir())
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_tracker_gets_the_recipe_and_the_curves_and_is_closed(
    backbone, data, recipe, tmp_path, monkeypatch
):
    heard: dict[str, Any] = {"points": {}}

    class Fake:
        def __init__(self, project: str, **options: str) -> None:
            heard["run"] = project, options["name"]

        def start(self) -> None: ...

        def store_init_configuration(self, values: dict[str, str]) -> None:
            heard["recipe"] = values

        def log(self, values: dict[str, float], step: int) -> None:
            heard["points"].setdefault(step, {}).update(values)

        def finish(self) -> None:
            heard["closed"] = True

    monkeypatch.setattr(logs, "WandBTracker", Fake)
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    result = train(backbone, data, "a", recipe(batch_size=8, tracker="wandb"), tmp_path)
    steps = result.provenance["steps_per_epoch"]
    assert heard["run"] == ("piggyback", "a")
    assert heard["recipe"]["mask_lr"] == "0.002"
    assert set(heard["points"]) == {*range(10, 3 * steps + 1, 10), steps, 2 * steps, 3 * steps}
    assert heard["points"][3 * steps]["epoch/val_loss"] == result.history[-1].val_loss
    assert heard["closed"]


def test_a_tracker_that_cannot_be_had_is_refused_first(
    backbone, data, recipe, tmp_path, monkeypatch
):
    def fails(*_, **__):
        raise RuntimeError("no server\nat that address")

    monkeypatch.setattr(logs, "WandBTracker", fails)
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    with pytest.raises(TrainingError, match=r"'wandb'.*no server;"):
        train(backbone, data, "a", recipe(tracker="wandb"), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match=r"\.\[mlflow\]"):
        train(backbone, data, "a", recipe(tracker="mlflow"), tmp_path / "other")
    with pytest.raises(InputError, match="expected out"):
        train(backbone, data, "a", recipe(tracker="tensorboard"))
    assert not (tmp_path / "other").exists()


def test_the_best_epoch_is_kept_not_the_last(backbone, data, recipe, monkeypatch):
    captured = []
    real_measure = loop.measure
    falling = iter([30.0, 80.0, 20.0])

    class Fake:
        loss, count = 1.0, 1000

        def __init__(self, accuracy: float) -> None:
            self.accuracy = accuracy

    def fake(*args: object, **kwargs: object) -> object:
        found = real_measure(*args, **kwargs)
        captured.append({k: v.clone() for k, v in args[0].state_dict().items()})
        accuracy = next(falling, None)
        return found if accuracy is None else Fake(accuracy)

    monkeypatch.setattr(loop, "measure", fake)
    result = train(backbone, data, "a", recipe("finetune"))
    assert result.val_accuracy == 80.0
    assert result.provenance["best_epoch"] == 2
    assert result.state is not None
    for name, tensor in captured[1].items():
        assert torch.equal(result.state[name], tensor)
    assert not torch.equal(captured[1]["0.weight"], captured[2]["0.weight"])


@pytest.mark.parametrize(
    ("count", "accuracies", "best"),
    [
        (1000, [80.0, 82.0, 78.0], 2),  # two standard errors are 3.4 points: the last is worse
        (1000, [80.0, 82.0, 79.0], 3),
        (24, [80.0, 100.0, 91.7], 3),  # two images more may be chance, also where all are right
        (24, [80.0, 100.0, 70.8], 2),
        (25, [80.0, 84.0, 80.0], 3),
        (25, [80.0, 84.0, 60.0], 2),
        (1, [100.0, 100.0, 0.0], 3),  # one image tells nothing
    ],
)
def test_of_epochs_that_val_cannot_tell_apart_the_last_is_kept(count, accuracies, best):
    progress = Progress()
    for epoch, accuracy in enumerate(accuracies, 1):
        flag = progress.is_best(accuracy, count)
        progress.history.append(
            EpochRow(epoch, 1.0, 50.0, 1.0, accuracy, None, 1e-3, 1.0, 1.0, flag)
        )
    assert progress.best is not None
    assert progress.best.epoch == best


def test_patience_ends_a_run_that_gets_no_better(backbone, data, recipe):
    stuck = recipe("head", epochs=20, head_lr=1e-12, patience=2)
    assert len(train(backbone, data, "a", stuck).history) == 3


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    backbone, data, recipe, tmp_path
):
    before = contents(backbone)

    class Spoil(Recorder):
        def on_epoch(self, row: EpochRow) -> None:
            backbone.module[9].bias.data.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"a: the loss is nan at epoch 2, step 1.*checkpoint"):
        train(backbone, data, "a", recipe(), tmp_path, listener=Spoil())
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    resumed = train(backbone, data, "a", recipe(), tmp_path, resume=True)
    assert_same(resumed.task, train(backbone, data, "a", recipe()).task)


def test_a_learning_rate_out_of_this_world(backbone, data, recipe):
    with pytest.raises(TrainingError, match="try lower learning rates"):
        train(backbone, data, "a", recipe("finetune", finetune_lr=1e30, schedule="constant"))


def test_a_finished_run_is_returned_and_not_repeated(backbone, data, recipe, tmp_path):
    for method in ("masks", "finetune"):
        first = train(backbone, data, "a", recipe(method), tmp_path / method)
        heard = Recorder()
        options = {"resume": True, "listener": heard}
        again = train(backbone, data, "a", recipe(method), tmp_path / method, **options)
        assert (again.accuracy, again.bytes) == (first.accuracy, first.bytes)
        assert again.history == first.history
        assert not heard.plans
    with pytest.raises(CheckpointError, match=r"result\.json.*recipe\.epochs is 3 there, 9 now"):
        train(backbone, data, "a", recipe(epochs=9), tmp_path / "masks", resume=True)


def test_arguments_are_checked_before_anything_happens(backbone, data, recipe, tmp_path):
    with pytest.raises(TaskNameError):
        train(backbone, data, "../a", recipe(), tmp_path)
    with pytest.raises(InputError, match=r"method 'mask'.*did you mean 'masks'"):
        train(backbone, data, "a", recipe("mask"), tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match=r"run folder .*file.* cannot be written"):
        train(backbone, data, "a", recipe(), tmp_path / "file")


def test_files_and_memory_train_to_the_same_masks(backbone, folder, recipe, monkeypatch):
    options = recipe(batch_size=4, epochs=2)
    cached = train(backbone, load_folder(folder), "pets", options).task
    monkeypatch.setattr(ImageData, "in_memory", lambda self, *_: self)
    streamed = train(backbone, load_folder(folder), "pets", options).task
    assert_same(cached, streamed)
