"""Piggyback: one frozen pretrained network, many tasks, a bit per weight and a small head each.

>>> import torch, piggyback
>>> backbone = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
>>> model = piggyback.MultiTaskModel(backbone)
>>> model.start_task("parity", classes=2)
>>> optimizer = model.optimizer(torch.optim.Adam, lr=2e-4, head_lr=1e-3)
>>> model(torch.randn(16, 4)).sum().backward(); optimizer.step()
>>> task = model.finish_task()
"""

from typing import TYPE_CHECKING, Any

from piggyback.backbones.backbone import Backbone
from piggyback.backbones.fingerprint import BackboneInfo
from piggyback.backbones.preprocessing import Preprocessing
from piggyback.errors import PiggybackError
from piggyback.masks.init import ScoreInit
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.packing import PackedMask, pack, unpack
from piggyback.masks.regularize import EntropyPrice, PullToKeep, TargetDensity
from piggyback.masks.rule import MaskRule
from piggyback.model import MultiTaskModel
from piggyback.tasks.file import load, load_file, read_header, save, save_file
from piggyback.tasks.task import Task, TaskInfo

if TYPE_CHECKING:
    from piggyback.backbones.load import load_backbone

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "BackboneInfo",
    "EntropyPrice",
    "MaskOptimizer",
    "MaskRule",
    "MultiTaskModel",
    "PackedMask",
    "PiggybackError",
    "Preprocessing",
    "PullToKeep",
    "ScoreInit",
    "TargetDensity",
    "Task",
    "TaskInfo",
    "load",
    "load_backbone",
    "load_file",
    "pack",
    "read_header",
    "save",
    "save_file",
    "unpack",
]


def __getattr__(name: str) -> Any:
    """Return ``load_backbone`` when it is asked for: timm and torchvision take seconds to import."""
    if name == "load_backbone":
        from piggyback.backbones.load import load_backbone

        return load_backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
