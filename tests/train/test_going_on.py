"""``train(..., start=task)``: more images, steps and classes for a task that is there already."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from piggyback.errors import BackboneMismatchError, CheckpointError, InputError
from piggyback.masks.rule import MaskRule
from piggyback.model.multitask import MultiTaskModel
from piggyback.taskfile.file import load, save
from piggyback.train import evaluate, from_tensors, train
from piggyback.train.data.sets import seen_in
from support.training_toys import Killed, Recorder, assert_same


@pytest.fixture
def first(backbone, data, recipe):
    return train(backbone, data, "colours", recipe(epochs=6)).task


def at_start(backbone, task, classes, **options):
    model = MultiTaskModel(backbone)
    model.start_task("again", classes, start=task, **options)
    return model, model.capture()


def test_a_start_is_the_task_itself(backbone, first):
    model, begun = at_start(backbone, first, first.info.classes)
    for name, mask in first.masks.items():
        assert torch.equal(mask.keep, begun.masks[name].keep), name
    for name, tensor in first.head.items():
        assert torch.equal(tensor, begun.head[name])
    live = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    optimizer = model.optimizer(lr=1e-3)
    optimizer.initialize()
    for name, scores in (
        (n, optimizer.scores(p)) for n, p in optimizer.named() if n in first.masks
    ):
        weight = model.backbone.get_parameter(name)
        assert torch.equal(live[name], weight)  # the first masks are the task's
        assert ((scores > optimizer.rule.threshold) == (weight != 0)).all()


def test_rows_of_the_head_go_by_name(backbone, first):
    classes = ("red", "white", "blue")  # another order, one new, one gone
    _, begun = at_start(backbone, first, classes)
    old = first.info.classes
    for row, name in ((0, "red"), (2, "blue")):
        for part in ("weight", "bias"):
            assert torch.equal(begun.head[part][row], first.head[part][old.index(name)])


def test_cancelling_leaves_the_backbone_as_it_was(backbone, first):
    before = {name: t.clone() for name, t in backbone.module.state_dict().items()}
    model, _ = at_start(backbone, first, first.info.classes)
    model.cancel_task()
    model.release()
    after = backbone.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_normalisation_goes_on_too(backbone, data, recipe):
    task = train(backbone, data, "colours", recipe(norm="trained")).task
    _, begun = at_start(backbone, task, task.info.classes, norm="trained")
    assert task.norm
    assert all(torch.equal(task.norm[name], begun.norm[name]) for name in task.norm)


def test_training_goes_on_where_it_was_and_says_so(backbone, data, recipe, first, tmp_path):
    told = Recorder()
    one = recipe(epochs=1, mask_lr=1e-9, head_lr=1e-9)
    again = train(backbone, data, "colours", one, tmp_path, start=first, listener=told)
    fresh = train(backbone, data, "colours", one)
    assert again.history[0].val_loss < fresh.history[0].val_loss
    assert again.task.density == pytest.approx(first.density)
    origin = load((tmp_path / "colours.safetensors").read_bytes()).info.provenance["from"]
    assert origin["name"] == "colours"
    assert len(origin["sha256"]) == 64


def lengths(numbers, side=16, unit="cm"):
    """Images as bright as their number says."""
    images = (
        torch.rand(len(numbers), 3, side, side, generator=torch.Generator().manual_seed(2)) * 50
    )
    images += numbers[:, :, None, None] * 2
    return from_tensors("size", ["size"], (images.byte(), numbers), units=[unit])


def test_numbers_go_on_in_their_scaling_and_unit(backbone, recipe, tmp_path):
    numbers = 50 + 10.0 * (torch.arange(120) % 3)[:, None]
    task = train(backbone, lengths(numbers), "size", recipe(epochs=15)).task
    still = recipe(epochs=1, mask_lr=1e-9, head_lr=1e-9)
    later = numbers + 20 * (numbers > 60)  # with another mean and deviation
    data = lengths(later)
    again = train(backbone, data, "size", still, tmp_path, start=task)
    assert again.task.info.scaling == task.info.scaling
    model = MultiTaskModel(backbone)
    model.load_task(tmp_path / "size.safetensors")
    assert evaluate(model, "size", data.test).accuracy == pytest.approx(again.accuracy, abs=0.01)
    model.start_task("own", ["new", "size"], kind="regression", units=["", "cm"], start=task)
    assert model.capture().info.scaling == ((0, 1), *task.info.scaling)
    model.cancel_task()
    model.start_task("same", ["size", "new"], kind="regression", start=task)
    assert model.capture().info.units == (*task.info.units, "")
    model.cancel_task()
    model.release()
    with pytest.raises(InputError, match=r"'mm'.*'cm'"):
        train(backbone, lengths(numbers * 10, unit="mm"), "size", still, start=task)


def test_images_are_prepared_as_before_unless_told(backbone, data, recipe):
    task = train(backbone, data, "c", recipe(epochs=1, image_size=32, crop_pct=0.9)).task
    told = Recorder()
    for options, seen in (({}, (32, 0.9)), ({"image_size": 16, "crop_pct": 0.8}, (16, 0.8))):
        again = train(
            backbone, data, "c", recipe(epochs=1, **options), start=task, listener=told
        ).task.info.preprocessing
        assert (again.image_size, again.crop_pct) == seen
    assert [line for line in told.notices if "px" in line] == [
        "going on from 'c', which sees 32 px, with 16 px"
    ]


def test_images_of_both_trainings_count_as_seen(backbone, recipe, first, data):
    generator = torch.Generator().manual_seed(8)
    labels = torch.arange(60) % 4
    images = (torch.rand(60, 3, 16, 16, generator=generator) * 200).byte()
    more = from_tensors("more", ["blue", "green", "red", "white"], (images, labels))
    told = Recorder()
    task = train(backbone, more, "more", recipe(epochs=1), start=first, listener=told).task
    assert task.info.classes == ("blue", "green", "red", "white")
    assert any("white" in line for line in told.notices)
    sketch = task.info.provenance["data"]["learned_from"]
    assert seen_in(more.train, sketch) == len(more.train)
    assert seen_in(data.train, sketch) > 0.8 * len(data.train)


def test_test_images_that_were_trained_on_are_told_of(backbone, recipe, first, data):
    told = Recorder()
    leaked = replace(data, test=data.train)
    train(backbone, leaked, "colours", recipe(epochs=1), start=first, listener=told)
    assert any("test images" in line for line in told.notices)


def test_an_interrupted_run_goes_on_to_the_same_bits(backbone, data, recipe, first, tmp_path):
    options = {"start": first}
    train(backbone, data, "c", recipe(), tmp_path / "whole", **options)
    with pytest.raises(Killed):
        train(backbone, data, "c", recipe(), tmp_path / "cut", listener=Recorder(2), **options)
    with pytest.raises(CheckpointError, match="from"):
        train(backbone, data, "c", recipe(), tmp_path / "cut", resume=True)
    train(backbone, data, "c", recipe(), tmp_path / "cut", resume=True, **options)
    assert_same(
        *(load((tmp_path / run / "c.safetensors").read_bytes()) for run in ("whole", "cut"))
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rule": MaskRule("ternary")}, "rule"),
        ({"norm": "trained"}, "normalisation"),
        ({"masks": False}, "masks"),
        ({"classes": ("x", "y")}, "classes"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_begun(backbone, first, change, word):
    model = MultiTaskModel(backbone)
    options = {"classes": first.info.classes, "start": first, **change}
    with pytest.raises(InputError, match=word):
        model.start_task("again", **options)
    model.start_task("again", 2)


def test_another_backbone_or_method_is_refused(backbone, data, recipe, first):
    with pytest.raises(InputError, match="finetune"):
        train(backbone, data, "colours", recipe("finetune"), start=first)
    with torch.no_grad():
        backbone.module[0].weight.add_(1)
    with pytest.raises(BackboneMismatchError, match="colours"):
        train(backbone, data, "colours", recipe(), start=first)


def test_a_head_alone_goes_on_to_masks(backbone, data, recipe):
    head = train(backbone, data, "colours", recipe("head")).task
    again = train(backbone, data, "colours", recipe(), start=load(save(head))).task
    assert again.masks
