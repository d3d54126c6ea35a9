"""Segmentation: a class for each pixel."""

from __future__ import annotations

from typing import Any

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
    one_each = False

    def targets(self, labels: Tensor) -> Tensor:
        """Return label maps as int64, void as -100."""
        return class_of_each(labels)

    def outputs(self, output: Any, targets: Tensor) -> Tensor:
        """Return logits of the maps' own size."""
        return logits_of(output, len(self.classes), targets.shape[1:]).float()

    def balanced(self, labels: Tensor) -> Tensor | None:
        """Return None: pixels of all maps would have to be counted first."""
        return None

    def answers(self, outputs: Tensor, top: int) -> list[Said]:
        """Raise InputError: a label map is of its image's size, which outputs do not tell."""
        raise InputError(
            "a segmentation's answers are label maps: expected segment() in their place"
        )
