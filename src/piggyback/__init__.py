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
    from piggyback.errors import PiggybackError as PiggybackError
    from piggyback.images.preprocessing import Preprocessing as Preprocessing
    from piggyback.masks.bits import PackedMask as PackedMask
    from piggyback.masks.bits import pack_mask as pack_mask
    from piggyback.masks.bits import unpack_mask as unpack_mask
    from piggyback.masks.optimizer import MaskOptimizer as MaskOptimizer
    from piggyback.masks.optimizer import warmup_cosine as warmup_cosine
    from piggyback.masks.regularize import EntropyPrice as EntropyPrice
    from piggyback.masks.regularize import PullToKeep as PullToKeep
    from piggyback.masks.regularize import TargetDensity as TargetDensity
    from piggyback.masks.rule import MaskRule as MaskRule
    from piggyback.masks.rule import ScoreInit as ScoreInit
    from piggyback.masks.rule import mask_lr as mask_lr
    from piggyback.model.multitask import MultiTaskModel as MultiTaskModel
    from piggyback.network.backbone import Backbone as Backbone
    from piggyback.network.backbone import BackboneInfo as BackboneInfo
    from piggyback.taskfile.file import load as load
    from piggyback.taskfile.file import load_file as load_file
    from piggyback.taskfile.file import save as save
    from piggyback.taskfile.file import save_file as save_file
    from piggyback.taskfile.header import read_header as read_header
    from piggyback.taskfile.task import Task as Task
    from piggyback.taskfile.task import TaskInfo as TaskInfo
    from piggyback.zoo.load import load_backbone as load_backbone

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "piggyback.network.backbone",
    "BackboneInfo": "piggyback.network.backbone",
    "load_backbone": "piggyback.zoo.load",
    "Preprocessing": "piggyback.images.preprocessing",
    "PiggybackError": "piggyback.errors",
    "ScoreInit": "piggyback.masks.rule",
    "MaskOptimizer": "piggyback.masks.optimizer",
    "PackedMask": "piggyback.masks.bits",
    "pack_mask": "piggyback.masks.bits",
    "unpack_mask": "piggyback.masks.bits",
    "mask_lr": "piggyback.masks.rule",
    "warmup_cosine": "piggyback.masks.optimizer",
    "EntropyPrice": "piggyback.masks.regularize",
    "PullToKeep": "piggyback.masks.regularize",
    "TargetDensity": "piggyback.masks.regularize",
    "MaskRule": "piggyback.masks.rule",
    "MultiTaskModel": "piggyback.model.multitask",
    "load": "piggyback.taskfile.file",
    "load_file": "piggyback.taskfile.file",
    "read_header": "piggyback.taskfile.header",
    "save": "piggyback.taskfile.file",
    "save_file": "piggyback.taskfile.file",
    "Task": "piggyback.taskfile.task",
    "TaskInfo": "piggyback.taskfile.task",
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
