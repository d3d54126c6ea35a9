"""The table with a row a class, and pictures side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from piggyback.errors import CheckpointError, InputError
from piggyback.images.label_maps import VOID, SegmentationSet
from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.experiments.report import result_in
from piggyback.lab.tables.segmentation import (
    compare_segmentation,
    iou_table,
    network_of,
    side_by_side,
)
from piggyback.network.backbone import Backbone
from piggyback.network.segmentation import SegmentationNetwork
from piggyback.train import ImageData, Measured, Recipe, train
from piggyback.train.evaluation import colours_of

CLASSES = ("dark", "light", "unseen")


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.conv(x).relu()]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = SegmentationNetwork(Features(), (6,))
    return Backbone(module.eval(), "segmentation:toy", Preprocessing(8), "head")


@pytest.fixture(scope="module")
def halves() -> ImageData:
    """Images of 8 x 8 with a dark and a light half; one column between them is void."""
    maps = torch.zeros(8, 8, 8, dtype=torch.uint8)
    maps[:, :, 4:] = 1
    images = (maps[:, None].expand(-1, 3, -1, -1) * 200).contiguous()
    maps[:, :, 3] = VOID
    whole = SegmentationSet(CLASSES, images, maps)
    return ImageData(
        "halves", *(whole.subset(torch.arange(i, i + n)) for i, n in ((0, 4), (4, 2), (6, 2)))
    )


@pytest.fixture(scope="module")
def runs(
    backbone: Backbone, halves: ImageData, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Path]]:
    """Folders of runs of three methods, masks with two seeds."""
    root = tmp_path_factory.mktemp("runs")
    made: dict[str, list[Path]] = {}
    settings = {"amp": "no", "channels_last": "no"}
    for label, method, seeds in (
        ("head only", "head", 1),
        ("masks", "masks", 2),
        ("fine-tuned", "finetune", 1),
    ):
        for seed in range(seeds):
            folder = root / f"{method}-{seed}"
            recipe = Recipe(method, epochs=6, batch_size=4, head_lr=0.1, seed=seed, **settings)
            train(backbone, halves, "halves", recipe, folder)
            made.setdefault(label, []).append(folder)
    return made


def test_table_and_pictures_from_the_runs_folders(backbone, halves, runs, tmp_path):
    results = {label: [result_in(folder) for folder in folders] for label, folders in runs.items()}
    written, drawn = compare_segmentation(backbone, halves, results, tmp_path / "out")
    numbers = json.loads((tmp_path / "out" / "per-class.json").read_text())
    for label, found in results.items():
        measured = [one["mean_iou"] for one in numbers[label]]
        assert measured == pytest.approx([one.accuracy for one in found])
    table = written.read_text().splitlines()
    assert table[0] == "| class | head only | masks | fine-tuned |"
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| dark", "| light", "| unseen", "| mean IoU", "| pixels right",
    ]  # fmt: skip
    assert "±" in table[5]
    assert np.array(numbers["masks"][0]["confusion"]).shape == (3, 3)
    picture = Image.open(drawn)
    assert picture.width > picture.height > 100


def test_the_network_of_a_run_answers_as_its_task_does(backbone, halves, runs):
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    for label, (folder, *_) in runs.items():
        result = result_in(folder)
        network = network_of(backbone, result)
        own = dict(network.state_dict())
        if label == "fine-tuned":
            assert all(torch.equal(own[name], tensor) for name, tensor in result.state.items())
        else:
            assert torch.equal(own["head.score.0.weight"], result.task.head["score.0.weight"])
    after = backbone.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_runs_that_do_not_go_together(backbone, halves, runs, tmp_path):
    result = result_in(runs["masks"][0])
    smaller = replace(result, provenance=json.loads(json.dumps(result.provenance)))
    smaller.provenance["recipe"]["image_size"] = 4
    with pytest.raises(InputError, match=r"images of \[4, 8\] pixels"):
        compare_segmentation(backbone, halves, {"a": [result], "b": [smaller]}, tmp_path)
    with pytest.raises(InputError, match="one or more results for each label"):
        compare_segmentation(backbone, halves, {"a": []}, tmp_path)
    lora = replace(result, task=None, state={}, method="lora")
    with pytest.raises(InputError, match="expected masks, head or finetune"):
        network_of(backbone, lora)
    with pytest.raises(CheckpointError, match="no run has ended there"):
        result_in(tmp_path)


def measured(right: int, wrong: int) -> Measured:
    return Measured(
        CLASSES, torch.tensor([[right, wrong, 0], [0, 10, 0], [0, 0, 0]]), 0.0, "segmentation"
    )


def test_a_class_that_nobody_saw_has_no_number_and_seeds_give_a_mean():
    table = iou_table({"head": [measured(6, 4)], "masks": [measured(8, 2), measured(10, 0)]})
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()}
    assert rows["dark"] == "| dark | 60.0 | 90.0 |"
    assert rows["unseen"] == "| unseen | - | - |"
    means = [(80 + 100 * 10 / 12) / 2, 100.0]
    spread = np.std(means, ddof=1)
    assert rows["mean IoU"].endswith(f"| {np.mean(means):.2f} ± {spread:.2f} |")


def test_pictures_show_each_class_in_its_colour_and_void_white():
    images = torch.full((2, 3, 4, 6), 7, dtype=torch.uint8)
    truth = torch.zeros(2, 4, 6, dtype=torch.uint8)
    truth[:, 0], truth[:, 1] = 1, VOID
    first, second, _ = colours_of(CLASSES)
    figure = side_by_side(images, {"truth": truth, "masks": truth}, CLASSES)
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "truth", "masks"]
    shown = figure.axes[1].images[0].get_array()
    assert shown[0, 0].tolist() == list(second)
    assert shown[1, 0].tolist() == [255, 255, 255]
    assert shown[2, 0].tolist() == list(first)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dark", "light", "void"]
    with pytest.raises(InputError, match=r"label maps 'masks' \(2, 4, 5\): expected \(2, 4, 6\)"):
        side_by_side(images, {"truth": truth, "masks": truth[:, :, :5]}, CLASSES)
