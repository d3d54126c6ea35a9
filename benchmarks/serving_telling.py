"""Tasks whose right answer tells which task gave it: the mask decides the class, the file its name."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from piggyback.model.multitask import MultiTaskModel
from piggyback.taskfile.file import save
from piggyback.taskfile.task import Task

ROWS = 64


class Telling(nn.Module):
    """All weights are 1; task i keeps row i alone, so that class i has the highest output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, ROWS, bias=False)
        self.head = nn.Linear(ROWS, ROWS)
        with torch.no_grad():
            self.body.weight.fill_(1.0)
            self.head.weight.copy_(torch.eye(ROWS))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, ROWS)."""
        return self.head(self.body(x))


INPUT = torch.full((4,), 2.0)


def telling_tasks(count: int) -> dict[str, Task]:
    """Return tasks ``t0``, ``t1``, ... of a ``Telling`` network; ``t7`` answers with class ``t7 says 7``."""
    model = MultiTaskModel(Telling(), head="head")
    tasks = {}
    for i in range(count):
        name, row = f"t{i}", i % ROWS
        model.start_task(name, classes=[f"{name} says {j}" for j in range(ROWS)])
        with torch.no_grad():
            model.backbone.body.weight.zero_()
            model.backbone.body.weight[row] = 1.0
            model.backbone.head.weight.copy_(torch.eye(ROWS))
            model.backbone.head.bias.zero_()
        tasks[name] = model.capture()
        model.cancel_task()
    return tasks


def expected(name: str) -> str:
    """Return the class that task ``name`` must answer with."""
    return f"{name} says {int(name[1:]) % ROWS}"


def write_tasks(folder: Path, count: int) -> dict[str, bytes]:
    """Write the files of ``telling_tasks``; return their bytes by task."""
    folder.mkdir(exist_ok=True)
    files = {name: save(task) for name, task in telling_tasks(count).items()}
    for name, data in files.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    return files
