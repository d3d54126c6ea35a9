"""Label maps for image files: what a segmentation task makes of them, and how that is written."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from piggyback.images.decode import load_fitted, normalise, upright_size
from piggyback.images.label_maps import VOID
from piggyback.images.preprocessing import Preprocessing
from piggyback.model.multitask import MultiTaskModel
from piggyback.train.checkpoint import write_atomically
from piggyback.train.data.segmentation import CAMVID
from piggyback.train.evaluation import find_images, prepared, running

Colour = tuple[int, int, int]

CAMVID_COLOURS: tuple[Colour, ...] = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (0, 0, 192),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
"""As CamVid's own pictures show its classes."""


@dataclass(frozen=True, eq=False)
class Segmented:
    """What a task makes of one image."""

    file: Path
    labels: Tensor
    """uint8, (height, width) of the image itself; 255 where the network does not look."""
    shares: dict[str, float]
    """Percent of the labelled pixels by class, largest first; classes that do not occur left out."""


def segment(
    model: MultiTaskModel, task: str, inputs: Iterable[str | Path], *, batch_size: int = 16
) -> Iterator[Segmented]:
    """Yield the label map of each image that ``inputs`` name, at its own size.

    Inputs and errors are those of ``predict``; InputError for a task that is no segmentation.
    """
    held = model.get_task(task)
    preprocessing, classes = prepared(held, "segmentation"), held.info.classes
    files = find_images(inputs)
    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        images = torch.stack([load_fitted(file, preprocessing) for file in part])
        with running(model) as device, torch.inference_mode():
            logits = model(normalise(images.to(device), preprocessing), task=task).float()
        for file, scores in zip(part, logits, strict=True):
            labels = _at_own_size(scores, upright_size(file), preprocessing)
            counted = torch.bincount(labels.flatten(), minlength=VOID + 1)[: len(classes)]
            percent = (100 * counted / counted.sum()).tolist()
            order = counted.argsort(descending=True).tolist()
            shares = {classes[i]: percent[i] for i in order if counted[i]}
            yield Segmented(file, labels, shares)


def palette(classes: int) -> list[Colour]:
    """Return a colour a class, as Pascal VOC numbers them: a class's bits spread over the channels.

    >>> palette(3)
    [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    """
    return [_colour(label) for label in range(classes)]


def colours_of(classes: Sequence[str]) -> list[Colour]:
    """Return a colour a class: CamVid's own for its classes, else ``palette``'s.

    >>> colours_of(["sky", "road"])
    [(0, 0, 0), (128, 0, 0)]
    """
    return list(CAMVID_COLOURS) if tuple(classes) == CAMVID else palette(len(classes))


def save_label_map(labels: Tensor, path: Path, colours: list[Colour]) -> None:
    """Write ``labels``, uint8 (h, w), as a palette PNG: pixel values are labels, void is white.

    Raises CheckpointError where it cannot be written.
    """
    image = Image.fromarray(labels.cpu().numpy())
    flat = [value for colour in colours for value in colour]
    image.putpalette([*flat, *[255] * (3 * 256 - len(flat))])
    drawn = io.BytesIO()
    image.save(drawn, format="PNG")
    write_atomically(path, lambda temporary: _put(temporary, drawn.getvalue()))


def _at_own_size(scores: Tensor, size: tuple[int, int], preprocessing: Preprocessing) -> Tensor:
    """The likeliest class of each pixel of an image of (width, height), from logits (classes, s, s).

    Class by class, since all logits of a large photograph at once would fill the memory.
    """
    width, height = size
    down, across = height, width
    if preprocessing.crop_pct < 1:
        down = across = max(1, round(min(size) * preprocessing.crop_pct))
    best, labels = None, torch.zeros(down, across, dtype=torch.uint8, device=scores.device)
    for label, score in enumerate(scores):
        larger = F.interpolate(score[None, None], (down, across), mode="bilinear")[0, 0]
        if best is None:
            best = larger
            continue
        labels[larger > best] = label
        best = torch.maximum(best, larger)
    if (down, across) == (height, width):
        return labels.cpu()
    whole = torch.full((height, width), VOID, dtype=torch.uint8)
    top, left = round((height - down) / 2), round((width - across) / 2)
    whole[top : top + down, left : left + across] = labels.cpu()
    return whole


def _colour(label: int) -> Colour:
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)
