"""The image size of a run whose recipe names none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from piggyback.errors import DataError
from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.train import ImageSet, SegmentationSet, load_folder, train
from piggyback.train.data import size
from piggyback.train.data.size import ImageSize, choose_size, held_side
from piggyback.zoo.load import load_backbone
from support.training_toys import Recorder


def pictures(folder: Path, *sizes: tuple[int, int]) -> ImageSet:
    files = []
    for number, one in enumerate(sizes):
        files.append(folder / f"{number:03d}.png")
        Image.new("RGB", one).save(files[-1])
    return ImageSet(("a", "b"), torch.arange(len(files)) % 2, files=tuple(files))


@pytest.fixture
def any_size() -> Backbone:
    """A network that takes every size and was trained on 224 pixels."""
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    return Backbone(module.eval(), "", Preprocessing(224), "3")


@pytest.fixture(scope="module")
def fixed() -> Backbone:
    """A vision transformer as it comes, with positions for 224 pixels."""
    return load_backbone("timm:vit_tiny_patch16_224", pretrained=False)


@pytest.mark.parametrize(
    ("shape", "side"), [((32, 32), 64), ((64, 90), 64), ((300, 104), 96), ((1000, 1400), 224)]
)
def test_the_size_is_what_the_files_hold_within_bounds(shape, side, any_size, tmp_path):
    chosen = choose_size(any_size, pictures(tmp_path, shape, shape, shape))
    assert chosen == ImageSize(side, f"the files hold {min(shape)}")


def test_the_median_of_evenly_spaced_files_counts(tmp_path, monkeypatch):
    images = pictures(tmp_path, (40, 50), (500, 400), (60, 99), (900, 900), (70, 70))
    assert held_side(images) == 70
    monkeypatch.setattr(size, "LOOKED_AT", 3)
    assert held_side(images) == 60  # of the first, third and fifth


def test_sizes_come_from_headers_and_a_bad_file_is_named(tmp_path):
    images = pictures(tmp_path, (48, 64))
    (file,) = images.files
    file.write_bytes(file.read_bytes()[:45])  # up to the pixels
    assert held_side(images) == 48
    file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"000\.png' cannot"):
        held_side(images)


def test_boxes_tensors_and_label_maps_have_their_own_sides(tmp_path):
    boxed = replace(pictures(tmp_path, (400, 300)), boxes=torch.tensor([[10, 20, 110, 320]]))
    assert held_side(boxed) == 100
    pixels = torch.zeros(3, 3, 30, 50, dtype=torch.uint8)
    assert held_side(ImageSet(("a",), torch.zeros(3, dtype=torch.int64), pixels)) == 30
    maps = torch.zeros(3, 30, 50, dtype=torch.uint8)
    assert held_side(SegmentationSet(("a",), pixels, maps)) == 30
    files = pictures(tmp_path, (480, 360)).files
    assert held_side(SegmentationSet(("a",), files=files, map_files=files)) == 360


def test_what_was_asked_for_comes_first(any_size, tmp_path):
    images = pictures(tmp_path, (64, 64))
    assert choose_size(any_size, images, 48) == ImageSize(48, "as asked")
    given = load_backbone("timm:resnet18", pretrained=False, image_size=96)
    assert choose_size(given, images) == ImageSize(96, "as the backbone was loaded")


def test_a_network_with_fixed_positions_keeps_its_size(fixed, tmp_path):
    images = pictures(tmp_path, (64, 64))
    fixed.module.blocks.train()  # modes are put back
    reason = "the files hold 64, but the network does not take 64"
    assert choose_size(fixed, images) == ImageSize(224, reason)
    assert not fixed.module.training
    assert all(block.training for block in fixed.module.blocks)
    fixed.module.eval()
    free = load_backbone("timm:vit_tiny_patch16_224", pretrained=False, image_size=96)
    free = replace(free, preprocessing=fixed.preprocessing, size_given=False)
    assert choose_size(free, images).side == 64


def test_a_task_is_trained_and_kept_at_the_chosen_size(any_size, folder, recipe):
    told = Recorder()
    options = recipe("head", epochs=1)
    result = train(any_size, load_folder(folder), "pets", options, listener=told)
    (plan,) = told.plans
    assert (plan.size, plan.size_reason) == ("64 px", "the files hold 16")
    assert result.task is not None
    assert result.task.info.preprocessing == Preprocessing(64)
