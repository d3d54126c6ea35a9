"""The quickstart from data to proof: train, compare, then answer for both tasks with one model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.experiments.compare import Comparison, compare
from piggyback.lab.quickstart.data import digits, letters
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.backbone import Backbone
from piggyback.train import ImageData, ImageSet, Listener, Recipe
from piggyback.zoo.load import load_backbone

BACKBONE = "efficientnet_lite0"
METHODS = ("head", "masks", "finetune")
# Six passes in small batches: in three, masks and fine-tuning lose 15 to 20 points on the letters, and the heads are
# not sure enough to tell whose an image is.
RECIPE = Recipe(
    epochs=6,
    batch_size=16,
    image_size=64,
    amp="no",
    channels_last="yes",  # what this network gains from on a CPU
)
SAMPLES = 4
"""Test images of each task that are written as files, and that the mixed batch is made of."""
_WHOLE = 3.1
"""Time of all that the quickstart does, in that of fine-tuning's steps: masks, heads, tests, plots."""


@dataclass(frozen=True)
class Answered:
    """One image of the mixed batch."""

    file: Path
    task: str
    answer: str
    truth: str


@dataclass(frozen=True)
class Quickstart:
    """What the quickstart leaves."""

    comparison: Comparison
    mixed: list[Answered]
    """One forward call for images of both tasks."""


def load_data() -> dict[str, ImageData]:
    """Return both tasks' images by name."""
    return {"digits": digits(), "letters": letters()}


def quickstart(
    out: Path,
    data: Mapping[str, ImageData] | None = None,
    *,
    recipe: Recipe = RECIPE,
    backbone: str = BACKBONE,
    listener: Callable[[str], Listener | None] = lambda label: None,
    on_estimate: Callable[[float], None] = lambda seconds: None,
) -> Quickstart:
    """Return the table and a mixed batch's answers; files, samples and plots go to ``out``.

    ``on_estimate`` is told at the start how many seconds all will take here.
    """
    images = load_data() if data is None else data
    loaded = load_backbone(backbone, image_size=recipe.image_size)
    on_estimate(expected_seconds(loaded, images, recipe))
    compared = compare(loaded, images, METHODS, recipe, out, overwrite=True, listener=listener)
    model = MultiTaskModel(loaded).eval()
    for file in compared.files.values():
        model.load_task(file)
    return Quickstart(compared, _mixed(model, images, out / "images"))


def expected_seconds(backbone: Backbone, data: Mapping[str, ImageData], recipe: Recipe) -> float:
    """Return how long the quickstart will take on this machine: a few steps are made, on a copy, and counted up."""
    network = copy.deepcopy(backbone.module).train()
    side = recipe.image_size or 64
    batch = torch.zeros(recipe.batch_size, 3, side, side).to(memory_format=torch.channels_last)
    times = []
    for _ in range(4):  # the first one sets up what the others use
        started = time.perf_counter()
        network(batch).sum().backward()
        times.append(time.perf_counter() - started)
    steps = sum(
        recipe.epochs_for(len(images.train)) * len(images.train) / recipe.batch_size
        for images in data.values()
    )
    return _WHOLE * steps * min(times[1:])


def _mixed(model: MultiTaskModel, data: Mapping[str, ImageData], folder: Path) -> list[Answered]:
    """Answers for a batch with the tasks in turns, its images also written to ``folder``."""
    tasks, files, truths, inputs = [], [], [], []
    for at in range(SAMPLES):
        for name, images in data.items():
            index = at * (len(images.test) // SAMPLES) + len(images.test) // (2 * SAMPLES)
            preprocessing = model.get_task(name).info.preprocessing
            assert isinstance(preprocessing, Preprocessing), "train writes one into every task"
            assert isinstance(images.test, ImageSet)
            pixels = images.test.load(index, preprocessing)
            truth = images.classes[int(images.test.targets(torch.tensor(index), preprocessing))]
            file = folder / f"{name}-{at}-{truth}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
            inputs.append(preprocessing.network_input(pixels[None]))
            tasks.append(name)
            files.append(file)
            truths.append(truth)
    with torch.inference_mode():
        outputs = model(torch.cat(inputs), task=tasks)
    return [
        Answered(file, name, data[name].classes[int(logits.argmax())], truth)
        for file, name, logits, truth in zip(files, tasks, outputs, truths, strict=True)
    ]
