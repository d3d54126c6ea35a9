"""A network that labels every pixel, and tasks on it with random masks and heads."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from piggyback.images.preprocessing import Preprocessing
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.backbone import Backbone
from piggyback.network.segmentation import SegmentationNetwork
from piggyback.taskfile.file import save

CLASSES = ("sky", "road", "tree")


class Features(nn.Module):
    """Two maps, of half and of a quarter of the image's side."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.fine(x)
        return [x, self.coarse(x)]


def parts() -> tuple[nn.Module, Preprocessing]:
    """The network and its preprocessing, for ``--backbone FILE:parts``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = SegmentationNetwork(Features(), (8, 12))
    return module.eval(), Preprocessing(16)


def build() -> Backbone:
    """The network as a backbone."""
    module, prepared = parts()
    return Backbone(module, "segmentation:toy", prepared, "head")


def task_file(name: str, seed: int = 0, seen: float = 1.0) -> bytes:
    """A task that labels pixels by chance, of the part ``seen`` of an image."""
    model = MultiTaskModel(build())
    model.start_task(name, CLASSES, kind="segmentation")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for conv in (model.backbone.features.fine[0], model.backbone.features.coarse[0]):
            conv.weight.masked_fill_(torch.rand_like(conv.weight) > 0.7, 0)
        for layer in model.backbone.head.score:
            layer.weight.normal_()
    task = model.capture()
    return save(
        replace(task, info=replace(task.info, preprocessing=Preprocessing(16, crop_pct=seen)))
    )


def picture(seed: int, size: tuple[int, int], kind: str = "PNG", turned: int = 1) -> bytes:
    """Blocks of random colours, encoded, with this EXIF orientation."""
    blocks = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turned
    file = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(file, kind, exif=exif)
    return file.getvalue()
