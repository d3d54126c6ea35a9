"""Piggyback: one frozen pretrained network, many tasks, a bit per weight and a small head each.

>>> import torch, piggyback
>>> backbone = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
>>> model = piggyback.MultiTaskModel(backbone)
>>> model.start_task("parity", classes=2)
>>> optimizer = model.optimizer(steps=1)
>>> model(torch.randn(16, 4)).sum().backward(); optimizer.step()
>>> task = model.finish_task()
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piggyback.backbones.backbone import Backbone as Backbone
    from piggyback.backbones.fingerprint import BackboneInfo as BackboneInfo
    from piggyback.backbones.load import load_backbone as load_backbone
    from piggyback.backbones.preprocessing import Preprocessing as Preprocessing
    from piggyback.errors import PiggybackError as PiggybackError
    from piggyback.masks.init import ScoreInit as ScoreInit
    from piggyback.masks.optimizer import MaskOptimizer as MaskOptimizer
    from piggyback.masks.packing import PackedMask as PackedMask
    from piggyback.masks.packing import pack as pack
    from piggyback.masks.packing import unpack as unpack
    from piggyback.masks.rate import mask_lr as mask_lr
    from piggyback.masks.rate import warmup_cosine as warmup_cosine
    from piggyback.masks.regularize import EntropyPrice as EntropyPrice
    from piggyback.masks.regularize import PullToKeep as PullToKeep
    from piggyback.masks.regularize import TargetDensity as TargetDensity
    from piggyback.masks.rule import MaskRule as MaskRule
    from piggyback.model import MultiTaskModel as MultiTaskModel
    from piggyback.tasks.file import load as load
    from piggyback.tasks.file import load_file as load_file
    from piggyback.tasks.file import read_header as read_header
    from piggyback.tasks.file import save as save
    from piggyback.tasks.file import save_file as save_file
    from piggyback.tasks.task import Task as Task
    from piggyback.tasks.task import TaskInfo as TaskInfo

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "piggyback.backbones.backbone",
    "BackboneInfo": "piggyback.backbones.fingerprint",
    "load_backbone": "piggyback.backbones.load",
    "Preprocessing": "piggyback.backbones.preprocessing",
    "PiggybackError": "piggyback.errors",
    "ScoreInit": "piggyback.masks.init",
    "MaskOptimizer": "piggyback.masks.optimizer",
    "PackedMask": "piggyback.masks.packing",
    "pack": "piggyback.masks.packing",
    "unpack": "piggyback.masks.packing",
    "mask_lr": "piggyback.masks.rate",
    "warmup_cosine": "piggyback.masks.rate",
    "EntropyPrice": "piggyback.masks.regularize",
    "PullToKeep": "piggyback.masks.regularize",
    "TargetDensity": "piggyback.masks.regularize",
    "MaskRule": "piggyback.masks.rule",
    "MultiTaskModel": "piggyback.model",
    "load": "piggyback.tasks.file",
    "load_file": "piggyback.tasks.file",
    "read_header": "piggyback.tasks.file",
    "save": "piggyback.tasks.file",
    "save_file": "piggyback.tasks.file",
    "Task": "piggyback.tasks.task",
    "TaskInfo": "piggyback.tasks.task",
}
"""Where each public name comes from. It is imported when it is asked for: torch takes seconds, which help texts and
shell completion need not wait for."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Return a public name, imported now."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
