"""The table with a row per class, and pictures side by side."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from piggyback.errors import InputError
from piggyback.images.label_maps import VOID
from piggyback.images.map_pictures import colours_of
from piggyback.lab.experiments.manifest import load_manifest
from piggyback.lab.experiments.report import draw
from piggyback.lab.experiments.runner import Experiment
from piggyback.lab.experiments.sources import Toy, toy
from piggyback.lab.tables.segmentation import (
    compare_segmentation,
    iou_table,
    network_of,
    side_by_side,
)
from piggyback.network.backbone import Backbone
from piggyback.train import Measured, TrainResult
from piggyback.train.result import finished

CLASSES = ("dark", "light", "unseen")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Three methods on the toy of CamVid, with two seeds each."""
    torch.manual_seed(0)
    manifest = toy(load_manifest("camvid-lite0").only(seeds=[0, 1]))
    made = Experiment(manifest, Toy(), tmp_path_factory.mktemp("runs"))
    made.run()
    return made


@pytest.fixture(scope="module")
def backbone(experiment: Experiment) -> Backbone:
    return experiment.sources.backbone(experiment.trials[0].choice, None)


@pytest.fixture(scope="module")
def results(experiment: Experiment) -> dict[str, list[TrainResult]]:
    """By label, of both seeds, read from the runs' folders."""
    found: dict[str, list[TrainResult]] = {}
    for job in experiment.ended:
        found.setdefault(job.label, []).append(finished(experiment.out / job.folder))
    return found


def test_table_and_pictures_of_an_experiment(experiment, results):
    written, drawn = draw(experiment)
    table = written.read_text().splitlines()
    assert table[0] == "| class | head | masks | finetune |"
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| class 0", "| class 1", "| class 2", "| mean IoU", "| pixels right",
    ]  # fmt: skip
    assert table[5].count("±") == 3
    for column, found in enumerate(results.values(), 1):  # the same networks, measured again
        again = float(table[5].split("|")[1 + column].split("±")[0])
        assert again == pytest.approx(np.mean([one.accuracy for one in found]), abs=0.01)
    picture = Image.open(drawn)
    assert picture.width > picture.height > 100


def test_the_network_of_a_run_answers_as_its_task_does(backbone, results):
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    for label, (result, _) in results.items():
        own = dict(network_of(backbone, result).state_dict())
        if label == "finetune":
            assert all(torch.equal(own[name], tensor) for name, tensor in result.state.items())
        else:
            assert torch.equal(own["head.score.0.weight"], result.task.head["score.0.weight"])
    after = backbone.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_runs_that_do_not_go_together(backbone, results, tmp_path):
    data, result = Toy().data("camvid"), results["masks"][0]
    smaller = replace(result, provenance=json.loads(json.dumps(result.provenance)))
    smaller.provenance["recipe"]["image_size"] = 4
    with pytest.raises(InputError, match=r"images of \[4, 16\] pixels"):
        compare_segmentation(backbone, data, {"a": [result], "b": [smaller]}, tmp_path)
    lora = replace(result, task=None, state={}, method="lora")
    with pytest.raises(InputError, match="expected masks, head or finetune"):
        network_of(backbone, lora)


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
