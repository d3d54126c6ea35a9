"""Segmentation: a class for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from piggyback.errors import InputError
from piggyback.images.label_maps import class_of_each
from piggyback.kinds.base import logits_of
from piggyback.kinds.classification import Classification
from piggyback.schemas import Said


class Segmentation(Classification):
    """A class for each pixel; outputs are logits (n, classes, h, w), labels uint8 maps with 255 for void."""

    name = "segmentation"
    losses_known = ("auto",)
    per_pixel = True
    fits = False

    def targets(self, labels: Tensor) -> Tensor:
        """Return label maps as int64, void as -100."""
        return class_of_each(labels)

    def outputs(self, output: Any, targets: Tensor) -> Tensor:
        """Return logits of the maps' own size."""
        return logits_of(output, len(self.classes), targets.shape[1:]).float()

    def kept(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return how many pixels of class i were called class j, int64 (n, classes, classes)."""
        n, k = len(outputs), len(self.classes)
        images = torch.arange(n, device=targets.device).view(-1, 1, 1)
        cells = ((images * k + targets) * k + outputs.argmax(1))[targets >= 0]
        return torch.bincount(cells, minlength=n * k * k).view(n, k, k)

    def balanced(self, labels: Tensor) -> Tensor | None:
        """Return None: pixels of all maps would have to be counted first."""
        return None

    def answers(self, outputs: Tensor, top: int, inputs: Sequence[Any] = ()) -> list[Said]:
        """Raise InputError: a label map is of its image's size, which outputs do not tell."""
        raise InputError(
            "a segmentation's answers are label maps: expected segment() in their place"
        )
