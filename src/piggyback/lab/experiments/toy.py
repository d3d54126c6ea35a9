"""An experiment at toy size: made-up images, a tiny network, two epochs; shows that all of it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from piggyback.images.label_maps import SegmentationSet
from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.datasets import DATASETS
from piggyback.lab.experiments.manifest import BackboneChoice, Manifest
from piggyback.network.backbone import Backbone
from piggyback.network.segmentation import SegmentationNetwork
from piggyback.train import ImageData, from_tensors
from piggyback.zoo.segmentation import PREFIX

SIDE = 16
_CLASSES, _EACH = 3, 12
_RECIPE = {
    "epochs": 2, "batch_size": 8, "image_size": SIDE,
    "amp": "no", "channels_last": "no", "tensorboard": False,
}  # fmt: skip
_SMALLER = (*_RECIPE, "crop_pct", "lora_rank", "lora_bytes", "prune_epochs", "mask_lr")


def toy(manifest: Manifest) -> Manifest:
    """Return a manifest with the same rows and columns whose cells take a second each."""

    def cut(options: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in options.items() if key not in _SMALLER}

    def two(trials: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
        """Those that still differ."""
        made = [cut(trial) for trial in trials]
        return tuple(t for at, t in enumerate(made) if t not in made[:at])[:2]

    methods = tuple(
        dataclasses.replace(method, recipe=cut(method.recipe), trials=two(method.trials))
        for method in manifest.methods
    )
    return dataclasses.replace(
        manifest,
        tasks={task: cut(options) for task, options in manifest.tasks.items()},
        methods=methods,
        recipe={**cut(manifest.recipe), **_RECIPE, "mask_lr": 2e-3, "lora_rank": 1},
        seeds=manifest.seeds[:2],
    )


class Toy:
    """Sources of a toy: nothing is read, nothing is downloaded."""

    def backbone(self, choice: BackboneChoice, image_size: int | None) -> Backbone:
        """Return a small random network, for segmentation where the spec says so."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fine = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
            coarse = nn.Sequential(
                nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()
            )
            pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))
            network: nn.Module = nn.Sequential(fine, coarse, *pooled)
            head = "4"
            if choice.spec.startswith(PREFIX):
                network, head = SegmentationNetwork(_Features(fine, coarse), (12, 16)), "head"
        return Backbone(network.eval(), "", Preprocessing(SIDE), head)

    def data(self, task: str) -> ImageData:
        """Return a few images of a few classes, told apart by a colour under noise."""
        info = DATASETS.get(task)  # None for a folder, which holds images of more classes
        count = _CLASSES if info is None else min(info.classes, _CLASSES)
        names = tuple(f"class {label}" for label in range(count))
        generator = torch.Generator().manual_seed(len(task))
        labels = torch.arange(_EACH * len(names)) % len(names)
        images = torch.rand(len(labels), 3, SIDE, SIDE, generator=generator) * 120
        images[torch.arange(len(labels)), labels] += 100
        if info is None or info.kind == "classification":
            return from_tensors(task, names, (images.byte(), labels))
        maps = labels.byte().view(-1, 1, 1).expand(-1, SIDE, SIDE).contiguous()
        parts = zip(images.byte().chunk(3), maps.chunk(3), strict=True)  # all classes in each
        train, val, test = (SegmentationSet(names, *part) for part in parts)
        return ImageData(task, train, val, test)

    def prepared(self, task: str) -> Mapping[str, Any]:
        """Return nothing: the images are made as they are needed."""
        return {}

    def train_images(self, task: str) -> int:
        """Return the number of made-up images."""
        return _EACH * _CLASSES

    def missing(self, manifest: Manifest) -> dict[str, str]:
        """Return nothing: nothing can be missing."""
        return {}


class _Features(nn.Module):
    """Two feature maps, the finer one first."""

    def __init__(self, fine: nn.Module, coarse: nn.Module) -> None:
        super().__init__()
        self.fine, self.coarse = fine, coarse

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return maps at the images' size and at half of it."""
        fine = self.fine(x)
        return [fine, self.coarse(fine)]
