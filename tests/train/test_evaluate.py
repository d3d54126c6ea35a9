"""Measuring tasks on image sets, and predicting files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from piggyback.errors import DataError, InputError, UnknownTaskError
from piggyback.images.decode import load_fitted, normalise
from piggyback.images.find import find_images
from piggyback.images.preprocessing import Preprocessing
from piggyback.kinds.base import logits_of
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.backbone import Backbone
from piggyback.train import ImageSet, evaluate, load_folder, predict, train
from piggyback.train.evaluation import measure
from piggyback.train.outcome import outcome_of
from piggyback.train.report import report_on


@pytest.fixture
def model(backbone: Backbone, folder: Path, recipe: Callable[..., object]) -> MultiTaskModel:
    """Holds the task pets: cat or dog."""
    task = train(backbone, load_folder(folder), "pets", recipe("head", epochs=1)).task
    assert task is not None
    held = MultiTaskModel(backbone.module, head=backbone.head)
    held.add_task(task)
    return held


def test_accuracy_confusion_and_loss_are_the_definitions(
    model: MultiTaskModel, folder: Path
) -> None:
    images = load_folder(folder).test
    found, outcome = outcome_of(model, "pets", images, batch_size=3, workers=0)
    assert report_on(outcome).numbers["accuracy"].value == pytest.approx(found.accuracy)
    view = Preprocessing(16)
    x = torch.stack([images.load(i, view) for i in range(len(images))])
    model.eval()
    with torch.no_grad():
        logits = model(normalise(x, view), task="pets")
    right = logits.argmax(1) == images.labels
    assert found.count == len(images) == 8
    assert found.accuracy == 100 * right.sum().item() / 8
    loss = torch.nn.functional.cross_entropy(logits, images.labels)
    assert found.loss == pytest.approx(loss.item(), rel=1e-5)
    assert found.confusion.sum(1).tolist() == [4, 4]
    assert found.per_class()["cat"] == 100 * right[:4].sum().item() / 4
    cats = evaluate(model, "pets", images.subset(torch.arange(4)), workers=0)
    assert cats.per_class() == {"cat": cats.accuracy, "dog": None}


def test_modes_are_left_as_they_were(model: MultiTaskModel, folder: Path) -> None:
    model.train()
    evaluate(model, "pets", load_folder(folder).test, workers=0)
    predict(model, "pets", [folder / "test"])
    assert model.training
    assert model.backbone[8].training
    assert not model.backbone[1].training


def test_images_of_other_classes(model: MultiTaskModel) -> None:
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    others = ImageSet(("cat", "fox"), torch.tensor([0, 1]), images)
    with pytest.raises(DataError, match="'fox'"):
        evaluate(model, "pets", others)


def test_images_of_some_of_the_classes(model: MultiTaskModel) -> None:
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    measured = evaluate(model, "pets", ImageSet(("dog",), torch.tensor([0, 0]), images), workers=0)
    assert measured.confusion.sum(1).tolist() == [0, 2]


def test_predictions_come_in_order_with_probabilities(model: MultiTaskModel, folder: Path) -> None:
    dog = folder / "test" / "dog"
    rows = predict(model, "pets", [dog / "02.png", folder / "test" / "cat"], top=9, batch_size=2)
    assert [Path(row.file).stem for row in rows] == ["02", "00", "01", "02", "03"]
    for row in rows:
        assert sorted(row.classes) == ["cat", "dog"]
        assert row.probabilities[0] >= row.probabilities[1]
        assert sum(row.probabilities) == pytest.approx(1)
    view = Preprocessing(16)
    x = normalise(load_fitted(dog / "02.png", view)[None], view)
    with torch.no_grad():
        expected = model(x, task="pets").softmax(1)[0]
    assert rows[0].probabilities[0] == pytest.approx(expected.max().item(), rel=1e-5)
    assert len(predict(model, "pets", [dog], top=1)[0].classes) == 1


def test_inputs_are_files_folders_and_globs_each_once(folder: Path) -> None:
    cat = folder / "test" / "cat"
    found = find_images([str(cat / "0[12].png"), cat / "01.png", cat, f"{folder}/**/dog/00.png"])
    names = [f"{path.parent.name}/{path.stem}" for path in found]
    assert names == ["cat/01", "cat/02", "cat/00", "cat/03", "dog/00", "dog/00"]
    brackets = (cat / "00.png").rename(cat / "photo[1].png")
    assert find_images([brackets]) == [brackets]  # a real name is no pattern


def test_inputs_that_name_nothing(model: MultiTaskModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given in ("absent.png", "*.png", "empty"):
        with pytest.raises(InputError, match="found none"):
            predict(model, "pets", [tmp_path / given])
    with pytest.raises(InputError, match="no inputs"):
        predict(model, "pets", [])
    with pytest.raises(InputError, match="top 0"):
        predict(model, "pets", [tmp_path], top=0)
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(DataError, match=r"a\.png"):
        predict(model, "pets", [tmp_path / "a.png"])


def test_an_unknown_task_is_never_the_backbone(model: MultiTaskModel, folder: Path) -> None:
    for call in (predict, evaluate):
        with pytest.raises(UnknownTaskError, match="did you mean 'pets'"):
            call(model, "pet", [folder])


def test_networks_that_return_something_else() -> None:
    for output in ({"logits": 1}, torch.zeros(2, 5), torch.zeros(2)):
        with pytest.raises(InputError, match=r"expected logits of shape \(n, 3\)"):
            logits_of(output, 3)


def test_measuring_keeps_no_graph(folder: Path) -> None:
    images = load_folder(folder).test
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return x.mean((2, 3))[:, :2]

    measure(network, images, Preprocessing(8), device=torch.device("cpu"), batch_size=8)
    assert seen == [False]
