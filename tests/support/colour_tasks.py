"""Tasks that name the colour of an image, each with names of its own: a wrong task cannot give a right answer."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor, nn

from piggyback.images.preprocessing import Preprocessing
from piggyback.model.multitask import MultiTaskModel
from piggyback.taskfile.file import save

COLOURS = ("red", "lime", "blue")
PLAIN = Preprocessing(8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Colours(nn.Module):
    """All base weights are 1; the mask says which channel counts for which class."""

    def __init__(self, slow: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1, bias=False)
        self.head = nn.Linear(3, 3)
        self.slow = slow
        """Seconds that a batch takes."""
        with torch.no_grad():
            self.body.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.slow)
        return self.head(self.body(x).mean((2, 3)))


def build() -> tuple[nn.Module, Preprocessing]:
    """The network and its preprocessing, for ``--backbone FILE:build``."""
    return Colours(), PLAIN


def task_file(name: str, shift: int = 0) -> bytes:
    """A task that names a colour, or the one ``shift`` places on."""
    model = MultiTaskModel(Colours(), head="head")
    model.start_task(name, classes=[f"{name} {colour}" for colour in COLOURS])
    with torch.no_grad():
        model.backbone.body.weight.copy_(torch.eye(3).roll(shift, 0).reshape(3, 3, 1, 1))
        model.backbone.head.weight.copy_(4 * torch.eye(3))
        model.backbone.head.bias.zero_()
    task = model.capture()
    return save(replace(task, info=replace(task.info, preprocessing=PLAIN)))


def numbered(count: int) -> dict[str, bytes]:
    """Files of tasks ``t0``, ``t1``, ... by name, each of which names the colour so many places on."""
    return {f"t{i}": task_file(f"t{i}", i) for i in range(count)}


def red_is(name: str) -> str:
    """The class that a numbered task must name for a red image."""
    return f"{name} {COLOURS[int(name[1:]) % 3]}"


def picture(colour: str, kind: str = "PNG", size: tuple[int, int] = (20, 10)) -> bytes:
    """An image of one colour, encoded."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()
