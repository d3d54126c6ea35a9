"""Distilled timm models whose two classifiers see the same features: one classifier instead."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SAME_FEATURES = ("EfficientFormer", "EfficientFormerV2", "SwiftFormer")
"""Classes that return (head(x) + head_dist(x)) / 2; elsewhere the two see different tokens."""


class FollowHead(nn.Module):
    """Stands where the second classifier was and answers what ``head`` does at the time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self._model[0].head(x)  # type: ignore[operator]
        return logits


@torch.no_grad()
def merge_heads(module: nn.Module) -> None:
    """Fold the second classifier into the first, in place; the mean of two linear maps is one.

    Does nothing to any other model. The outputs are the same up to rounding.
    """
    if type(module).__name__ not in _SAME_FEATURES:
        return
    first, second = module.head, getattr(module, "head_dist", None)
    if not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
        return
    first.weight.copy_((first.weight + second.weight) / 2)
    first.bias.copy_((first.bias + second.bias) / 2)
    module.head_dist = FollowHead(module)
