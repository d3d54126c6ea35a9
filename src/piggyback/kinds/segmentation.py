"""Segmentation: a class for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from piggyback.errors import InputError
from piggyback.images.label_maps import VOID, class_of_each
from piggyback.images.map_pictures import as_png, at_own_size, colours_of, shares
from piggyback.kinds.base import logits_of
from piggyback.kinds.classification import Classification
from piggyback.schemas import ClassShare, LabelMap, Said


@dataclass(frozen=True)
class Segmentation(Classification):
    """A class for each pixel; outputs are logits (n, classes, h, w), labels uint8 maps with 255 for void."""

    name = "segmentation"
    losses_known = ("auto",)
    per_pixel = True
    fits = False
    one_each = False

    def __post_init__(self) -> None:
        if len(self.classes) > VOID:
            raise InputError(
                f"segmentation of {len(self.classes)} classes: expected at most {VOID}, the values of a label map"
            )

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
        """Return each image's label map, at the size of its frame, and the share of every class."""
        colours = colours_of(self.classes)
        said = []
        for scores, frame in zip(outputs, inputs, strict=True):
            labels = at_own_size(scores, frame)
            found = [
                ClassShare(
                    name=self.classes[label],
                    label=label,
                    percent=percent,
                    colour="#{:02x}{:02x}{:02x}".format(*colours[label]),
                )
                for label, percent in shares(labels)
            ]
            drawn = as_png(labels, colours)
            one = LabelMap(width=frame.width, height=frame.height, shares=tuple(found), png=drawn)
            said.append(Said(label_map=one))
        return said
