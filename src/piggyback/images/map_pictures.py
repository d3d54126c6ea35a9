"""Label maps as pictures: the class of each pixel at an image's own size, what shares classes take, colours, PNG."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from piggyback.images.label_maps import VOID

Colour = tuple[int, int, int]
CAMVID = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car",
    "Pedestrian", "Bicyclist",
)  # fmt: skip
"""The eleven classes of CamVid that papers measure, in the order of the label maps' values."""
CAMVID_COLOURS: tuple[Colour, ...] = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
"""As CamVid's own pictures show its classes."""


class Frame(NamedTuple):
    """The upright image that the square a network sees was made from."""

    width: int
    height: int
    seen: float = 1.0
    """Side of the part that the square shows, from the centre, by the shorter side; at 1 it shows the whole image."""


def at_own_size(scores: Tensor, frame: Frame) -> Tensor:
    """Return the likeliest class of each pixel of an image, uint8 (height, width), from logits (classes, s, s).

    255 stands where the network does not look. Class by class, since all logits of a large photograph at once would
    fill the memory.

    >>> at_own_size(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), Frame(4, 1))
    tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    """
    width, height, seen = frame
    down, across = height, width
    if seen < 1:
        down = across = max(1, round(min(width, height) * seen))
    best, labels = None, torch.zeros(down, across, dtype=torch.uint8, device=scores.device)
    for label, score in enumerate(scores):
        larger = F.interpolate(score[None, None], (down, across), mode="bilinear")[0, 0]
        if best is None:
            best = larger
            continue
        labels.masked_fill_(larger > best, label)
        torch.maximum(best, larger, out=best)
    if (down, across) == (height, width):
        return labels.cpu()
    whole = torch.full((height, width), VOID, dtype=torch.uint8)
    top, left = round((height - down) / 2), round((width - across) / 2)
    whole[top : top + down, left : left + across] = labels.cpu()
    return whole


def shares(labels: Tensor) -> list[tuple[int, float]]:
    """Return each label that occurs, and its percent of the pixels that are not void, largest first.

    >>> shares(torch.tensor([[2, 2, 2, 0, 255]], dtype=torch.uint8))
    [(2, 75.0), (0, 25.0)]
    """
    counted = torch.bincount(labels.flatten(), minlength=VOID + 1)[:VOID]
    percent = (100 * counted.double() / counted.sum()).tolist()
    order = counted.argsort(descending=True, stable=True).tolist()
    return [(label, percent[label]) for label in order if counted[label]]


def palette(classes: int) -> list[Colour]:
    """Return one colour per class, as Pascal VOC numbers them: a class's bits spread over the channels.

    >>> palette(3)
    [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    """
    colours = [[0, 0, 0] for _ in range(classes)]
    for label, bit, channel in itertools.product(range(classes), range(8), range(3)):
        colours[label][channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
    return [(red, green, blue) for red, green, blue in colours]


def colours_of(classes: Sequence[str]) -> list[Colour]:
    """Return one colour per class: CamVid's own for its classes, else ``palette``'s.

    >>> colours_of(["sky", "road"])
    [(0, 0, 0), (128, 0, 0)]
    """
    return list(CAMVID_COLOURS) if tuple(classes) == CAMVID else palette(len(classes))


def as_png(labels: Tensor, colours: Sequence[Colour]) -> bytes:
    """Return a label map, uint8 (h, w), as a palette PNG: pixel values are labels, void is white."""
    image = Image.fromarray(labels.cpu().numpy())
    flat = [value for colour in colours for value in colour]
    image.putpalette([*flat, *[255] * (3 * 256 - len(flat))])
    drawn = io.BytesIO()
    image.save(drawn, format="PNG")
    return drawn.getvalue()
