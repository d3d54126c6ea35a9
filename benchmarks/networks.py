"""Networks, batches and tasks to measure with. Weights are random: no time depends on their values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Settings
from piggyback import MaskOptimizer, MultiTaskModel, Task
from piggyback.images.decode import load_fitted, normalise
from piggyback.images.preprocessing import Preprocessing

CLASSES = 10


def network(name: str, settings: Settings) -> nn.Module:
    """Return timm's network in eval mode on the device, the same at every call."""
    torch.manual_seed(0)
    return timm.create_model(name).eval().to(settings.device)


def batch(settings: Settings, images: int, side: int) -> tuple[Tensor, Tensor]:
    """Return random images (n, 3, side, side) and labels; few and small ones in quick mode."""
    images, side = (2, 32) if settings.quick else (images, side)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 3, side, side, generator=generator)
    y = torch.randint(CLASSES, (images,), generator=generator)
    return x.to(settings.device), y.to(settings.device)


@dataclass(frozen=True)
class Side:
    """A network and what trains it."""

    network: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, x: Tensor, y: Tensor) -> None:
        """Make one step of the usual loop: float32, as the tensors lie in memory."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.network(x), y).backward()
        self.optimizer.step()


def masks_side(
    backbone: nn.Module,
    make_optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    *,
    norm: Literal["frozen", "trained"] = "trained",
    channels_last: bool = False,
    **options: object,
) -> Side:
    """Return masks in training on a copy of ``backbone``; normalisation is trained, as fine-tuning does."""
    model = MultiTaskModel(copy.deepcopy(backbone))
    if channels_last:
        model.to(memory_format=torch.channels_last)
    model.train()
    model.start_task("task", CLASSES, norm=norm)
    groups = model.parameter_groups(lr=1e-4)
    optimizer = MaskOptimizer(groups, make_optimizer, base=model.base_of, **options)
    optimizer.initialize()
    return Side(model, optimizer)


def finetune_side(backbone: nn.Module) -> Side:
    """Return a copy of ``backbone`` in training, all of it, with fused Adam."""
    net = copy.deepcopy(backbone).train()
    net.reset_classifier(CLASSES)  # timm's
    net.to(next(backbone.parameters()).device)
    return Side(net, torch.optim.Adam(net.parameters(), lr=1e-4, fused=True))


def logits_of(model: MultiTaskModel, task: str, files: Sequence[Path]) -> Tensor:
    """Return a task's outputs for image files, (files, classes)."""
    seen = model.get_task(task).info.preprocessing
    assert isinstance(seen, Preprocessing), f"task {task!r}: its file names no preprocessing"
    found = []
    for start in range(0, len(files), 50):
        x = torch.stack([load_fitted(file, seen) for file in files[start : start + 50]])
        with torch.inference_mode():
            found.append(model(normalise(x, seen), task=task))
    return torch.cat(found)


def add_task(model: MultiTaskModel, name: str, seed: int, spread: float = 0.0) -> Task:
    """Give ``model`` a task with masks like those that training makes, and return it.

    Layers keep 80 to 99.5 % of their weights. Within a layer the rows' shares of dropped weights differ by up
    to ``spread`` of the layer's.
    """
    generator = torch.Generator().manual_seed(seed)
    model.start_task(name, CLASSES)
    with torch.no_grad():
        for param in model.parameter_groups(lr=0.0)[0]["params"]:
            dropped = 0.005 * 40 ** torch.rand((), generator=generator)
            rows = 1 + spread * (2 * torch.rand(len(param), generator=generator) - 1)
            keep = torch.rand(param.shape, generator=generator) >= dropped * rows.view(
                -1, *(1,) * (param.ndim - 1)
            )
            base = model.base_of(param)
            param.copy_(torch.where(keep.to(base.device), base, torch.zeros_like(base)))
    return model.finish_task()
