"""Handwritten digits that scikit-learn installs (Alpaydin and Kaynak, 1998): 8 x 8 pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from piggyback.errors import require
from piggyback.train.data.sets import ImageData, from_tensors

CLASSES = tuple("0123456789")
TEST = 400
"""The last pictures are for testing: they were collected in order, so other hands wrote them."""


def digits(train: int = 1000, *, size: int = 64) -> ImageData:
    """Return the first ``train`` digits and the last 400, enlarged to uint8 (n, 3, size, size).

    >>> data = digits(train=200, size=16)
    >>> len(data.train) + len(data.val), len(data.test), data.train.images.shape[1:]
    (200, 400, torch.Size([3, 16, 16]))
    """
    source = require("sklearn.datasets", "quickstart").load_digits()
    labels = torch.from_numpy(source.target).long()
    pixels = torch.from_numpy(source.images)
    first, last = slice(0, train), slice(-TEST, None)
    return from_tensors(
        "digits",
        CLASSES,
        (_enlarge(pixels[first], size), labels[first]),
        (_enlarge(pixels[last], size), labels[last]),
    )


def _enlarge(pixels: Tensor, size: int) -> Tensor:
    """Values 0 to 16 as grey images, uint8 (n, 3, size, size)."""
    grey = (pixels * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    large: Tensor = F.resize(grey, [size, size])
    return large.repeat(1, 3, 1, 1)
