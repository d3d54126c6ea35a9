"""Each kind from images and labels to a file, its measure, answers, a server and ONNX, at toy size."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from piggyback.errors import DataError, InputError
from piggyback.images.label_maps import SegmentationSet
from piggyback.kinds import kind_of
from piggyback.lab.tables.rows import row_of
from piggyback.model.multitask import MultiTaskModel
from piggyback.serve import Engine, EngineOptions
from piggyback.taskfile.task import TaskInfo
from piggyback.train import ImageData, ImageSet, evaluate, from_tensors, predict, train
from piggyback.train.outcome import outcome_of
from piggyback.train.report import report_on
from piggyback.train.result import finished
from support.training_toys import assert_same, interrupted


def colours(kind: str, n: int = 120):
    """Images of noise in which channels are bright: which ones (multilabel), or how bright (regression)."""
    generator = torch.Generator().manual_seed(5)
    images = (torch.rand(n, 3, 16, 16, generator=generator) * 100).byte()
    if kind == "multilabel":
        labels = torch.rand(n, 3, generator=generator) < 0.4
        images += (labels * 120).byte()[:, :, None, None]
        return from_tensors("c", ["red", "green", "blue"], (images, labels))
    bright = torch.rand(n, 2, generator=generator) * 150
    images[:, :2] += bright.byte()[:, :, None, None]
    numbers = bright * torch.tensor([10.0, 0.01]) + torch.tensor([500.0, 0.0])
    return from_tensors("c", ["red", "green"], (images, numbers), units=["lm", ""])


@pytest.mark.parametrize(("kind", "loss"), [("multilabel", "focal"), ("regression", "huber")])
def test_a_task_is_learned_measured_and_asked(kind, loss, backbone, recipe, tmp_path):
    data = colours(kind)
    assert data.kind == kind
    result = train(backbone, data, "c", recipe(epochs=12, batch_size=16, loss=loss), tmp_path)
    assert result.accuracy > 60
    measures = {"multilabel": "mean average precision", "regression": "R2"}
    assert row_of(finished(tmp_path)).measure == measures[kind]
    info = result.task.info
    assert info.kind == kind
    assert info.units == (("lm", "") if kind == "regression" else ())
    assert bool(info.scaling) == (kind == "regression")
    assert bool(info.thresholds) == (kind == "multilabel")

    model = MultiTaskModel(backbone)
    model.load_task(tmp_path / "c.safetensors")
    model.eval()
    again, outcome = outcome_of(model, "c", data.test)
    assert again.accuracy == evaluate(model, "c", data.test).accuracy
    assert again.accuracy == pytest.approx(result.accuracy, abs=1e-3)
    report = report_on(outcome)
    assert len(again.by_class()[1]) == len(report.rows) == len(info.classes)
    if kind == "multilabel":
        found = report.numbers["mean_average_precision"].value
        assert found == pytest.approx(again.accuracy, abs=1e-3)
    else:
        off = [report.numbers[f"{name} mae"].value for name in info.classes]
        each = [row[0] for row in again.by_class()[1].values()]
        assert off == pytest.approx(each, rel=1e-4)
        assert "mae" not in again.numbers()  # of lumens and of what has no unit

    place = tmp_path / "one.png"
    Image.fromarray(data.test.images[0].permute(1, 2, 0).numpy()).save(place)
    (found,) = predict(model, "c", [place])
    truth = data.test.labels[0]
    if kind == "regression":
        first = found.said.values[0]
        assert (first.name, first.unit) == ("red", "lm")
        assert abs(first.value - float(truth[0])) < 400
    else:
        assert set(found.said.labels) <= set(found.classes)

    options = EngineOptions(watch_s=0, decode_apart=False)
    with Engine(model.release(), tmp_path, options=options) as engine:
        answer = engine.predict(place, "c", top_k=2)
    assert answer.labels == found.said.labels
    if kind == "regression":
        assert answer.ranking == ()
        assert [v.value for v in answer.values] == pytest.approx(
            [v.value for v in found.said.values]
        )


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_interrupted_runs_of_every_kind_end_in_the_same_bits(kind, backbone, recipe, tmp_path):
    data, options = colours(kind), recipe(epochs=3, batch_size=16)
    whole = train(backbone, data, "c", options)
    resumed = interrupted(backbone, data, "c", options, tmp_path)
    assert_same(resumed.task, whole.task)
    assert resumed.task.info.thresholds == whole.task.info.thresholds
    assert resumed.val_accuracy == whole.val_accuracy


def test_own_loops_start_a_task_of_any_kind(backbone):
    model = MultiTaskModel(backbone)
    model.start_task("h", ["height"], kind="regression", units=["m"])
    y = torch.rand(8, 1)
    optimizer = model.optimizer(steps=1, batches=[(torch.rand(8, 3, 16, 16), y)])
    (model(torch.rand(8, 3, 16, 16)) - y).square().mean().backward()
    optimizer.step()
    assert model.preprocessing is not None
    assert model.finish_task().info.units == ("m",)
    with pytest.raises(InputError, match="units"):
        model.start_task("i", 2, units=["m", "s"])
    model.start_task("i", 2, kind="multilabel")
    with pytest.raises(InputError, match="batches"):
        model.optimizer(steps=1, batches=[(torch.rand(8, 3, 16, 16), torch.zeros(8).long())])


def test_labels_say_the_kind_and_sets_of_two_kinds_are_refused():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    labels = {
        "classification": torch.tensor([0, 1, 0, 1]),
        "multilabel": torch.eye(4, 2) > 0,
        "regression": torch.rand(4, 2),
    }
    sets = {kind: ImageSet(("a", "b"), rows, images) for kind, rows in labels.items()}
    assert {kind: images.kind for kind, images in sets.items()} == {kind: kind for kind in sets}
    maps = SegmentationSet(("a", "b"), images, torch.zeros(4, 8, 8, dtype=torch.uint8))
    assert maps.kind == "segmentation"

    with pytest.raises(DataError, match="labels"):
        ImageSet(("a", "b"), torch.rand(4, 3), images)
    with pytest.raises(DataError, match="finite"):
        ImageSet(("a",), torch.tensor([[1.0], [float("nan")], [0.0], [2.0]]), images)
    with pytest.raises(DataError, match="multilabel"):
        ImageData("x", sets["classification"], sets["multilabel"], sets["classification"])


def skewed() -> ImageData:
    """Two classes of overlapping brightness, 150 images of one and 10 of the other."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.cat([torch.zeros(150), torch.ones(10)]).long()
    noise = torch.rand(160, 3, 16, 16, generator=generator) * 60
    level = 40 + 30 * labels + torch.randn(160, generator=generator) * 14
    images = (noise + level.clamp(0, 180).view(-1, 1, 1, 1)).byte()
    return from_tensors("s", ["common", "rare"], (images, labels), test_fraction=0.3)


def test_balanced_weights_make_a_rare_class_count(backbone, recipe):
    found = {}
    for weights in (None, "balanced"):
        one = recipe(method="head", epochs=60, batch_size=16, head_lr=3e-2, class_weights=weights)
        result = train(backbone, skewed(), "s", one)
        model = MultiTaskModel(backbone)
        model.add_task(result.task)
        confusion = evaluate(model.eval(), "s", skewed().test).confusion
        found[weights] = int(confusion[1, 1]) / int(confusion[1].sum())
        model.release()
    assert found["balanced"] > found[None]


def test_weights_of_classes_and_of_labels():
    labels = torch.tensor([0, 0, 0, 1])
    one = kind_of(TaskInfo(classes=("a", "b")))
    assert one.balanced(labels).tolist() == pytest.approx([4 / 6, 2.0])
    several = kind_of(TaskInfo("multilabel", ("a", "b")))
    rows = torch.tensor([[True, False], [False, False], [False, True], [False, True]])
    assert several.balanced(rows).tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "fields", "wanted"),
    [
        ("regression", {"loss": "focal"}, "focal.*huber or absolute"),
        ("multilabel", {"loss": "huber"}, "huber.*focal or asymmetric"),
        ("regression", {"class_weights": "balanced"}, "class_weights.*regression"),
        ("multilabel", {"class_weights": "even"}, "'even'.*'balanced'"),
    ],
)
def test_losses_of_other_kinds_are_refused_before_training(kind, fields, wanted, backbone, recipe):
    with pytest.raises(InputError, match=wanted):
        train(backbone, colours(kind), "c", recipe(epochs=1, **fields))
