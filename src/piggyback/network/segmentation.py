"""Segmentation networks: a pretrained network's features, and a head that scores every pixel.

    image (n, 3, h, w) -> features, finest first -> head: 1 x 1 scores at each scale, the coarser
    ones enlarged and added (n, classes, h / 4, w / 4) -> enlarged to (n, classes, h, w)

The head is what Long et al. 2015 ("Fully convolutional networks", FCN-8s) put behind VGG-16. It is
small, since every task file carries its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALES = 4
"""Number of feature maps that are scored, the coarsest ones."""


class SegmentationHead(nn.Module):
    """Scores of every class at each scale of the features, added up at the finest one.

    It starts at zero, as FCN's does: random weights on features of this size begin with a large
    loss.

    >>> head = SegmentationHead((8, 16), classes=3)
    >>> head([torch.zeros(2, 8, 6, 6), torch.zeros(2, 16, 3, 3)]).shape
    torch.Size([2, 3, 6, 6])
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.out_channels = tuple(channels), classes
        self.score = nn.ModuleList(
            nn.Conv2d(inputs, classes, 1, device=device, dtype=dtype) for inputs in channels
        )
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (n, classes, h, w) for maps (n, channels, h, w), finest first; the coarsest
        ones are scored, as many as there are channels for."""
        taken = features[-len(self.score) :]
        scores = [layer(x) for layer, x in zip(self.score, taken, strict=True)]
        total: Tensor = scores.pop()
        while scores:
            finer = scores.pop()
            total = finer + _enlarged(total, finer.shape[-2:])
        return total


class SegmentationNetwork(nn.Module):
    """A network that answers with logits (n, classes, h, w) for images (n, 3, h, w).

    ``features`` returns a list of maps, finest first, with so many ``channels``.
    """

    def __init__(self, features: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.features = features
        # Like timm's networks that come without a classifier: one class, until a task brings its.
        self.head = SegmentationHead(tuple(channels)[-SCALES:], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits at the images' own size."""
        logits: Tensor = self.head(self.features(x))
        return _enlarged(logits, x.shape[-2:])


class FullyConvolutionalVGG(nn.Module):
    """VGG's convolutions, and its two hidden linear layers as convolutions (FCN, section 4.1).

    ``layers`` are the convolutional part with its five poolings; ``fc6`` has a 7 x 7 kernel,
    ``fc7`` 1 x 1. Returns what lies after the third and the fourth pooling and after fc7, at 1/8,
    1/16 and 1/32 of the image's side. A border of 3 keeps fc6's output at the size of its input,
    where the original pads the image by 100 pixels and crops.
    """

    def __init__(self, layers: nn.Sequential, fc6: nn.Conv2d, fc7: nn.Conv2d) -> None:
        super().__init__()
        self.layers, self.fc6, self.fc7 = layers, fc6, fc7
        self.drop = nn.Dropout(0.5)
        poolings = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        self.taken = poolings[2:4]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return three maps, finest first."""
        maps = []
        for at, layer in enumerate(self.layers):
            x = layer(x)
            if at in self.taken:
                maps.append(x)
        x = self.drop(F.relu(self.fc6(x)))
        return [*maps, self.drop(F.relu(self.fc7(x)))]


class ChannelsFirst(nn.Module):
    """Features of a network that keeps its channels last, as (n, channels, h, w)."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.inner = features

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, finest first."""
        return [found.permute(0, 3, 1, 2) for found in self.inner(x)]


def _enlarged(x: Tensor, size: torch.Size) -> Tensor:
    larger: Tensor = F.interpolate(x, size, mode="bilinear", align_corners=False)
    return larger
