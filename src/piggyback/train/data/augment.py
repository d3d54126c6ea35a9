"""Augmentation of training images: random shift, crop, flip, and torchvision's automatic policies.

Each image's draw depends on (seed, epoch, its index) and nothing else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from piggyback.train.hashing import uniforms
from piggyback.train.recipe import Augment

_DRAWS = 7  # shift x, shift y, flip, crop area, crop x, crop y, policy
_STREAM = 1 << 32  # keeps these draws apart from the shuffle's, which share seed and epoch


def draws(seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the random numbers that ``augment`` uses up for each of ``indices``, float64 (n, 7).

    >>> draws(0, 1, np.arange(5)).shape
    (5, 7)
    """
    return uniforms(seed, epoch + _STREAM, indices, _DRAWS)


def augment(image: Tensor, options: Augment, size: int, chances: npt.NDArray[np.float64]) -> Tensor:
    """Return an augmented copy of ``image``, uint8 (3, s, s), as uint8 (3, size, size).

    >>> image = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    >>> augment(image, Augment(), 4, draws(0, 1, np.array([2]))[0]).shape
    torch.Size([3, 4, 4])
    """
    if options.policy != "none":
        image = _by_policy(image, options.policy, int(chances[6] * 2**53))
    return _moved(image, options, size, chances)


def augment_map(
    label_map: Tensor, options: Augment, size: int, chances: npt.NDArray[np.float64]
) -> Tensor:
    """Return a label map, uint8 (s, s), moved, cut and mirrored as its image is, uint8 (size, size).

    >>> label_map = torch.eye(4, dtype=torch.uint8)
    >>> augment_map(label_map, Augment(), 4, draws(0, 1, np.array([2]))[0]).shape
    torch.Size([4, 4])
    """
    return _moved(label_map[None], options, size, chances, InterpolationMode.NEAREST_EXACT)[0]


def _moved(
    image: Tensor,
    options: Augment,
    size: int,
    chances: npt.NDArray[np.float64],
    mode: InterpolationMode = InterpolationMode.BILINEAR,
) -> Tensor:
    """Crop, shift and flip, which change where pixels are and nothing else."""
    dx, dy, mirror, area, left, top = chances.tolist()[:6]
    if options.crop < 1:
        whole = image.shape[-1]
        part = max(1, round(whole * (options.crop + (1 - options.crop) * area) ** 0.5))
        room = whole - part + 1
        y, x = int(top * room), int(left * room)
        image = F.resized_crop(image, y, x, part, part, [size, size], mode, antialias=True)
    if most := int(options.shift * size):
        image = _shifted(image, int(dy * (2 * most + 1)) - most, int(dx * (2 * most + 1)) - most)
    if options.flip and mirror < 0.5:
        image = image.flip(-1)
    return image


def _shifted(image: Tensor, dy: int, dx: int) -> Tensor:
    """``image`` moved by (dy, dx) pixels, the gap filled with its mirror image."""
    rows = _mirrored(image.shape[-2], dy)
    columns = _mirrored(image.shape[-1], dx)
    return image[:, rows][:, :, columns]


def _mirrored(side: int, offset: int) -> Tensor:
    """Indices offset ... offset + side - 1, reflected into 0 ... side - 1; no edge twice."""
    period = max(2 * side - 2, 1)
    positions = torch.arange(offset, offset + side).remainder(period)
    return torch.minimum(positions, period - positions)


def _by_policy(image: Tensor, policy: str, seed: int) -> Tensor:
    # These transforms draw from torch's global generator: give it this sample's seed, then put it
    # back.
    transform = v2.TrivialAugmentWide() if policy == "trivial" else v2.RandAugment()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed: Tensor = transform(image)
    return changed
