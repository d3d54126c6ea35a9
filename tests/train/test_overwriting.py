"""Runs that were lost, or begun anew, without a word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from piggyback.errors import CheckpointError
from piggyback.network.backbone import Backbone
from piggyback.train import ImageData, Recipe, train
from support.training_toys import Recorder


def test_a_finished_run_is_not_replaced_by_another_one_unasked(
    backbone: Backbone, data: ImageData, recipe, tmp_path: Path
) -> None:
    short: Recipe = recipe(epochs=1)
    first = train(backbone, data, "toy", short, tmp_path)
    kept = (tmp_path / "toy.safetensors").read_bytes()
    other = replace(short, batch_size=short.batch_size // 2)
    with pytest.raises(CheckpointError, match="batch_size"):
        train(backbone, data, "toy", other, tmp_path)
    assert (tmp_path / "toy.safetensors").read_bytes() == kept
    assert train(backbone, data, "toy", short, tmp_path).accuracy == first.accuracy
    assert train(backbone, data, "toy", other, tmp_path, overwrite=True).path == first.path


def test_an_interrupted_run_that_starts_anew_is_said(
    backbone: Backbone, data: ImageData, recipe, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"of a run that was stopped")
    told = Recorder()
    train(backbone, data, "toy", recipe(epochs=1), tmp_path, listener=told)
    assert any("resume=True" in notice for notice in told.notices)
