"""kill -9 at any moment and resume: the end is the same, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as load_tensors

from piggyback.errors import CheckpointError
from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.taskfile.file import load_file
from piggyback.train import ImageData, Recipe, checkpoint, from_tensors, train
from piggyback.train.checkpoint import CHECKPOINT
from piggyback.train.result import RESULT
from support.training_toys import Killed, Recorder, assert_same

DRIVER = Path(__file__).parents[1] / "support" / "resume_driver.py"


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize(("method", "kills"), [("masks", 4), ("finetune", 2)])
def test_killed_at_random_moments(method, kills, tmp_path):
    command = [sys.executable, str(DRIVER), str(tmp_path), method, str(kills)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "checkpoint" in ran.stdout.split()
    ends = [load_tensors(tmp_path / name / "end.safetensors") for name in ("whole", "killed")]
    assert ends[0].keys() == ends[1].keys()
    assert any(name.endswith("/scores") for name in ends[0]) == (method == "masks")
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
    if method == "masks":
        assert_same(*(load_file(tmp_path / n / "toy.safetensors") for n in ("whole", "killed")))
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert CHECKPOINT not in left
    rows = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 3


def stopped(
    backbone: Backbone, data: ImageData, recipe: Recipe, folder: Path, epoch: int = 2
) -> None:
    with pytest.raises(Killed):
        train(backbone, data, "a", recipe, folder, overwrite=True, listener=Recorder(epoch))


@pytest.mark.parametrize("method", ["head", "masks"])
def test_going_on_after_an_epoch_keeps_history_best_and_time(
    method, backbone, data, recipe, tmp_path
):
    options = recipe(method, epochs=4)
    with pytest.raises(Killed):  # a first run may be asked to go on, too
        train(backbone, data, "a", options, tmp_path, resume=True, listener=Recorder(2))
    resumed = train(backbone, data, "a", options, tmp_path, resume=True)
    whole = train(backbone, data, "a", options)
    assert [row.val_loss for row in resumed.history] == [row.val_loss for row in whole.history]
    assert resumed.accuracy == whole.accuracy
    assert resumed.history[1].seconds < resumed.history[2].seconds
    assert_same(resumed.task, whole.task)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"epochs": 9}, r"recipe\.epochs"),
        ({"seed": 1}, r"recipe\.seed"),
        ({}, "backbone"),
        ({}, r"data\.sha256\.train"),
    ],
)
def test_a_checkpoint_of_another_run(change, field, backbone, data, recipe, tmp_path):
    stopped(backbone, data, recipe(), tmp_path)
    if field == "backbone":
        with torch.no_grad():
            backbone.module[0].weight.mul_(2)
    elif not change:
        data.train.images[0, 0, 0, 0] += 1
    with pytest.raises(CheckpointError, match=rf"another run: {field} is"):
        train(backbone, data, "a", recipe(**change), tmp_path, resume=True)


def test_a_damaged_checkpoint_and_a_damaged_result(backbone, data, recipe, tmp_path):
    stopped(backbone, data, recipe(), tmp_path)
    place = tmp_path / CHECKPOINT
    place.write_bytes(place.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="delete it to start anew"):
        train(backbone, data, "a", recipe(), tmp_path, resume=True)
    train(backbone, data, "a", recipe(), tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"result\.json.*damaged"):
        train(backbone, data, "a", recipe(), tmp_path, resume=True)


def test_a_new_run_in_an_old_folder_can_be_resumed(backbone, data, recipe, tmp_path):
    train(backbone, data, "a", recipe(epochs=1), tmp_path)
    old = (tmp_path / "a.safetensors").read_bytes()
    stopped(backbone, data, recipe(), tmp_path)
    assert (tmp_path / "a.safetensors").read_bytes() == old
    assert len(train(backbone, data, "a", recipe(), tmp_path, resume=True).history) == 3


def made_of(side: int, count: int = 40) -> ImageData:
    values = torch.arange(count * 3 * side * side) % 251
    images = values.to(torch.uint8).view(count, 3, side, side)
    return from_tensors("noise", ["a", "b"], (images, torch.arange(count) % 2))


def large(backbone: Backbone) -> Backbone:
    return replace(backbone, preprocessing=Preprocessing(224))


def test_a_resumed_run_keeps_the_size_that_its_images_gave(backbone, recipe, tmp_path):
    data = made_of(70)
    stopped(large(backbone), data, recipe("head"), tmp_path)
    saved = checkpoint.read(tmp_path / CHECKPOINT)
    assert saved.identity["recipe"]["image_size"] == 64
    with pytest.raises(CheckpointError, match=r"recipe\.image_size is 64 there, 96 now"):
        train(large(backbone), data, "a", recipe("head", image_size=96), tmp_path, resume=True)
    result = train(large(backbone), data, "a", recipe("head"), tmp_path, resume=True)
    assert result.task is not None
    assert result.task.info.preprocessing == Preprocessing(64)
    assert result.provenance["recipe"]["image_size"] == 64
    assert len(result.history) == 3


def test_a_result_from_before_runs_chose_their_size_is_still_read(backbone, recipe, tmp_path):
    first = train(backbone, made_of(16), "a", recipe("head"), tmp_path)
    place = tmp_path / RESULT
    saved = json.loads(place.read_text())
    saved["identity"]["recipe"]["image_size"] = None
    saved["result"]["provenance"]["recipe"]["image_size"] = None
    place.write_text(json.dumps(saved))
    again = train(backbone, made_of(16), "a", recipe("head"), tmp_path, resume=True)
    assert again.history == first.history
