"""Segmentation on the command line: train, evaluate, predict, inspect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import map_tasks
from support.cli_toys import train

NETWORK = f"{map_tasks.__file__}:parts"


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 16 x 20, dark above and light below, in CamVid's layout with classes of their own."""
    root = tmp_path_factory.mktemp("images") / "streets"
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for at in range(count):
            labels = np.zeros((16, 20), dtype=np.uint8)
            labels[rng.integers(4, 12) :] = 1
            pixels = rng.integers(0, 60, (16, 20, 3)) + 180 * labels[..., None]
            labels[0] = 255
            Image.fromarray(pixels.astype(np.uint8)).save(
                root / split / "images" / f"{split}{at}.png"
            )
            Image.fromarray(labels).save(root / split / "labels" / f"{split}{at}.png")
    (root / "classes.txt").write_text("night\nday\n")
    return root


@pytest.fixture(scope="module")
def task(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(
        *("--data", streets, "--backbone", NETWORK, "--out", out, "--epochs", 6),
        *("--batch-size", 4, "--head-lr", 0.1, "--amp", "no"),
        *("--channels-last", "no", "--label-smoothing", 0),
    )
    return out / "streets.safetensors"


def test_evaluate_shows_the_iou_of_each_class(piggyback, task, streets):
    shown = piggyback("evaluate", task, "--data", streets, "--backbone", NETWORK)
    assert shown.code == 0
    for text in ("night", "IoU (%)", "mean IoU", "in 4 images"):
        assert text in shown.out
    asked = piggyback("evaluate", task, "--data", streets / "val", "--backbone", NETWORK, "--json")
    found = json.loads(asked.out)
    assert found["images"] == 4
    assert list(found["classes"]) == ["night", "day"]
    assert found["mean_iou"] == pytest.approx(sum(found["classes"].values()) / 2, abs=1e-3)
    assert found["mean_iou"] > 60


def test_predict_writes_a_label_map_of_each_image_s_size(piggyback, task, streets, tmp_path):
    asked = ("predict", streets / "test" / "images", "--task", task, "--backbone", NETWORK)
    shown = piggyback(*asked, "--out", tmp_path / "maps", "--json")
    assert shown.code == 0
    answers = json.loads(shown.out)
    assert [Path(one["labels"]).name for one in answers] == [f"test{i}.png" for i in range(4)]
    for one in answers:
        labels = np.array(Image.open(one["labels"]))
        assert labels.shape == (16, 20)
        assert one["percent"]["day"] == pytest.approx(100 * (labels == 1).mean(), abs=1e-3)
    assert "label map" in piggyback(*asked, "--out", tmp_path / "maps").out
    lines = piggyback(*asked, "--out", tmp_path / "maps", "--format", "csv").out.splitlines()
    assert lines[0] == "file,labels,class,percent"


def test_predict_says_what_it_needs(piggyback, task, streets, trained, toy):
    images = streets / "test" / "images"
    asked = ("predict", images, "--task", task, "--backbone", NETWORK)
    for arguments, expected in (
        (asked, "labels every pixel: give --out DIR"),
        ((*asked, "--out", images), "lies where its label map goes"),
        ((*asked, streets / "test" / "labels", "--out", "maps"), "have one label map's name"),
        ((*asked, "--task", task), "expected one task"),
        (("predict", images, "--task", trained, "--backbone", f"{toy}:build", "--out", "maps"),
         "--out is for the label maps of a segmentation task"),
    ):  # fmt: skip
        piggyback(*arguments).refuses(expected)


def test_bad_images_cannot_be_skipped(piggyback, task, streets):
    for command in (("train", "--data", streets), ("evaluate", task, "--data", streets)):
        ran = piggyback(*command, "--backbone", NETWORK, "--skip-bad")
        ran.refuses("--skip-bad is for class folders")


def test_inspect_names_the_score(piggyback, task):
    assert "% mean IoU" in piggyback("inspect", task).out
    assert "test mean IoU" in piggyback("inspect", task, "--card").out
