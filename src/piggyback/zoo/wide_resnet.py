"""Wide ResNet-28-4 for 64-pixel images: the backbone of the Visual Decathlon.

    3 x 64 x 64  -> conv 16 -> 4 blocks of 64, /2 -> 4 of 128, /2 -> 4 of 256, /2 -> norm, ReLU, mean -> fc
                                 32 x 32               16 x 16          8 x 8

A block normalises before it convolves (Zagoruyko and Komodakis 2016); 28 counts its convolutions, shortcuts too. Every
stage begins with stride 2, so that 64 pixels end as 8 x 8 (Rebuffi et al. 2017).
"""

from __future__ import annotations

from torch import Tensor, nn

from piggyback.errors import BackboneError
from piggyback.images.preprocessing import Preprocessing

WIDE = "wide_resnet28_4"

_STEM = 16
_WIDTH = 4
_BLOCKS = 4
"""In each of the three stages: 28 = 6 * 4 + 4."""


class WideResNet(nn.Module):
    """Wide ResNet-28-4; takes (batch, 3, side, side), returns logits (batch, classes).

    >>> import torch
    >>> WideResNet(10).eval()(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 10])
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = _conv(3, _STEM, 3, 1)
        inputs = _STEM
        for stage in (1, 2, 3):
            outputs = _STEM * _WIDTH << (stage - 1)
            blocks = [
                WideBlock(inputs if first else outputs, outputs, 2 if first else 1)
                for first in (True, *[False] * (_BLOCKS - 1))
            ]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            inputs = outputs
        self.norm = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = self.conv1(images)
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        logits: Tensor = self.fc(self.pool(self.relu(self.norm(x))).flatten(1))
        return logits


class WideBlock(nn.Module):
    """Two 3 x 3 convolutions, each behind batch norm and ReLU, added to what came in."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3, 1)
        self.relu = nn.ReLU(inplace=True)
        changes = stride != 1 or inputs != outputs
        self.shortcut = _conv(inputs, outputs, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum; a shortcut that changes the shape starts behind the first ReLU."""
        ready = self.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(ready)
        added: Tensor = self.conv2(self.relu(self.norm2(self.conv1(ready)))) + kept
        return added


def load_wide_resnet(*, pretrained: bool = True) -> tuple[nn.Module, str, Preprocessing]:
    """Return the network with random weights, its source, and 64 pixels cut out of 72 as preprocessing.

    Raises BackboneError with ``pretrained``: nobody has published weights for it.
    """
    if pretrained:
        raise BackboneError(
            f"backbone {WIDE!r}: there are no published weights for it; give a file with checkpoint="
        )
    return WideResNet(), WIDE, Preprocessing(64, crop_pct=64 / 72)


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
