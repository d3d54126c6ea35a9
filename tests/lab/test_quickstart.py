"""The quickstart's data, and its way from images to proof on a small scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from piggyback.lab.quickstart import run
from piggyback.lab.quickstart.data import TEST_FONTS, TRAIN_FONTS, digits, letters
from piggyback.taskfile.file import load_file
from support.cli_toys import BACKBONE


def test_letters_are_the_same_every_time_and_never_blank():
    data, again = letters(train=32, test=12, size=24), letters(train=32, test=12, size=24)
    for split, images in data.splits().items():
        assert images.images is not None
        assert torch.equal(images.images, again.splits()[split].images)
        grey = images.images.float().mean(1).flatten(1)
        assert float(grey.std(1).min()) > 5  # the noise alone is below 4
    assert not set(TRAIN_FONTS) & set(TEST_FONTS)
    assert data.test.counts() == [12] * 26


def test_digits_keep_the_last_ones_for_test():
    pytest.importorskip("sklearn")
    data = digits(train=100, size=16)
    assert (len(data.train) + len(data.val), len(data.test)) == (100, 400)
    assert min(data.test.counts()) > 30
    assert data.train.images.shape[1:] == (3, 16, 16)


def test_quickstart_leaves_all_that_it_promises(tmp_path):
    toy = tmp_path / "toy.py"
    toy.write_text(BACKBONE)
    data = {"a": letters(4, 2, size=24), "b": letters(3, 2, size=24, seed=1)}
    recipe = replace(run.RECIPE, epochs=1, image_size=24)
    out = tmp_path / "out"
    told: list[float] = []
    done = run.quickstart(
        out, data, recipe=recipe, backbone=f"{toy}:build", on_estimate=told.append
    )
    assert 0 < told[0] < 100
    assert [row.method for row in done.comparison.rows] == [*run.METHODS, *run.METHODS]
    assert done.comparison.proof is not None
    assert done.comparison.proof.identical
    assert done.comparison.proof.forgotten == ()
    for name in "ab":
        assert load_file(out / "tasks" / f"{name}.safetensors").masks
    for name in ("accuracy.png", "density.png"):
        assert Image.open(out / name).format == "PNG"
    assert [one.task for one in done.mixed] == ["a", "b"] * run.SAMPLES
    for one in done.mixed:
        assert Image.open(one.file).size == (24, 24)
        assert one.file.stem.endswith(one.truth)
