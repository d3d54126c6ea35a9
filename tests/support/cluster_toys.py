"""A network of images, in a file that every process can load, and tasks that say who they are."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from piggyback.model.multitask import MultiTaskModel
from piggyback.taskfile.file import save
from piggyback.zoo.load import load_backbone

ROWS = 16

NETWORK = f'''
import torch
from torch import nn

from piggyback.images.preprocessing import Preprocessing


class Telling(nn.Module):
    """All weights are 1; task i keeps row i alone, so that class i has the highest output."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, {ROWS}, 1, bias=False)
        self.head = nn.Linear({ROWS}, {ROWS})
        with torch.no_grad():
            self.body.weight.fill_(1.0)
            self.head.weight.copy_(torch.eye({ROWS}))
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def build():
    return Telling(), Preprocessing(8, mean=(0.0, 0.0, 0.0), std=(0.1, 0.1, 0.1))
'''


def write_network(folder: Path) -> str:
    """Write the network's file; return its name as a backbone."""
    file = folder / "network.py"
    file.write_text(NETWORK, encoding="utf-8")
    return f"{file}:build"


def task_files(backbone: str, count: int) -> dict[str, bytes]:
    """Files of tasks ``t0``, ``t1``, ... by name; ``t3`` answers with class ``t3 says 3``."""
    loaded = load_backbone(backbone)
    model = MultiTaskModel(loaded, head="head")
    files = {}
    for i in range(count):
        name = f"t{i}"
        model.start_task(name, classes=[f"{name} says {j}" for j in range(ROWS)])
        with torch.no_grad():
            model.backbone.body.weight.zero_()
            model.backbone.body.weight[i % ROWS] = 1.0
            model.backbone.head.weight.copy_(torch.eye(ROWS))
            model.backbone.head.bias.zero_()
        files[name] = save(model.capture())
        model.cancel_task()
    return files


def expected(name: str) -> str:
    """The class that task ``name`` must answer with."""
    return f"{name} says {int(name[1:]) % ROWS}"


def image() -> bytes:
    """A grey PNG."""
    out = BytesIO()
    Image.new("RGB", (12, 12), (128, 128, 128)).save(out, "PNG")
    return out.getvalue()
