"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): images of a batch mixed in pairs, the first with the last.

share    of an image that stays, drawn from Beta(alpha, alpha); the loss is that of both labels by their shares
mixup    x = share * x + (1 - share) * other                     every pixel
cutmix   a rectangle of 1 - share of the area is the other's     share is what is left of x

What is drawn follows from the seed and the step alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from piggyback.train.hashing import seed_of
from piggyback.train.recipe import Recipe

_STREAM = 0x312


@dataclass(frozen=True)
class Mix:
    """How the images of one step are mixed; ``Mix()`` leaves them as they are."""

    share: float = 1.0
    centre: tuple[float, float] | None = None
    """Of CutMix's rectangle, as fractions of height and width; None for mixup."""

    def images(self, images: Tensor) -> tuple[Tensor, float]:
        """Return uint8 images (n, 3, h, w) mixed, and the share of each that stayed.

        >>> import torch
        >>> images = torch.tensor([0, 100], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
        >>> Mix(0.75).images(images)[0][:, 0, 0, 0].tolist()
        [25, 75]
        >>> Mix(0.75, (0.5, 0.5)).images(images)[0][0, 0, 1].tolist()
        [0, 100, 100, 0]
        """
        if self.share == 1:
            return images, 1.0
        if self.centre is None:
            return self.blended(images.float()).round().to(images.dtype), self.share
        sides = [
            [round(min(max(middle * side + d * cut / 2, 0), side)) for d in (-1, 1)]
            for middle, side in zip(self.centre, images.shape[-2:], strict=True)
            for cut in [side * (1 - self.share) ** 0.5]
        ]
        (top, bottom), (left, right) = sides
        made = images.clone()
        made[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
        area = (bottom - top) * (right - left)
        return made, 1 - area / (images.shape[-2] * images.shape[-1])

    def blended(self, rows: Tensor) -> Tensor:
        """Return rows (n, ...) of numbers as mixup blends them."""
        return rows if self.share == 1 else self.share * rows + (1 - self.share) * rows.flip(0)


def mix_of(recipe: Recipe, *step: int) -> Mix:
    """Return how a recipe mixes the images of a step; where it asks for both, each has half of the steps."""
    asked = [(alpha, cut) for alpha, cut in ((recipe.mixup, False), (recipe.cutmix, True)) if alpha]
    if not asked:
        return Mix()
    drawn = np.random.default_rng(seed_of(recipe.seed, _STREAM, *step))
    alpha, cut = asked[drawn.integers(len(asked))]
    share = float(drawn.beta(alpha, alpha))
    return Mix(share, (float(drawn.random()), float(drawn.random())) if cut else None)


def shared(of: Callable[[Tensor], Tensor], labels: Tensor, others: Tensor, share: float) -> Tensor:
    """Return what ``of`` says of the labels and of those of the images mixed in, by their shares."""
    return of(labels) if share == 1 else share * of(labels) + (1 - share) * of(others)
