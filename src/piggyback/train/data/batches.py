"""Batches of uint8 images in an order, and with an augmentation, fixed by (seed, epoch).

A batch is a place in the epoch's order, cut over the processes: process r of w takes every w-th of its samples. An
image's augmentation depends on (seed, epoch, its index) and nothing else. So batch b can be made at any time by
anyone, which is what a resume in mid-epoch, loader workers and several processes need. That is why this is not
torchvision's transforms in a shuffling DataLoader: those draw from streams, whose state would have to be saved in
every worker; only the automatic policies are torchvision's, each under a seed of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from piggyback.errors import DataError
from piggyback.images.preprocessing import Preprocessing
from piggyback.texts.preprocessing import Prepares, TextPreprocessing, as_images
from piggyback.train.data.labelled import LabelledSet
from piggyback.train.data.sets import ImageSet, Split
from piggyback.train.data.text import TextSet
from piggyback.train.hashing import balanced, shuffled, uniforms
from piggyback.train.recipe import Augment

Batch = tuple[Tensor, Tensor]
"""Images uint8 (n, 3, s, s) or tokens int64 (n, length), and labels (n, ...) or label maps uint8 (n, s, s)."""
_DRAWS = 7  # shift x, shift y, flip, crop area, crop x, crop y, policy
_STREAM = 1 << 32  # keeps these draws apart from the shuffle's, which share seed and epoch
_FEW = 500  # images; with more, the mirror image was as good or better
_BLANK = 6.0  # of 255: an edge of one colour is no further from its median, noise and JPEG included


@dataclass
class TrainBatches(Dataset[Batch]):
    """Shuffled, augmented batches of one epoch; an incomplete last one is left out.

    ``batch_size`` counts the samples of all processes together.
    """

    images: Split
    preprocessing: Prepares
    options: Augment
    _: KW_ONLY
    batch_size: int
    seed: int
    epoch: int
    sampling: str | None = None
    """As ``Recipe.sampling``."""
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        self.batch_size = _real_batch(self.images, self.batch_size, self.world)
        self.order = drawn(self.sampling, self.images, self.seed, self.epoch)
        if isinstance(self.images, TextSet):
            texts = None if self.sampling is None else self.order % len(self.images)
            self.order = self.images.order(self.seed, self.epoch, self.batch_size, texts)

    def __len__(self) -> int:
        return steps_in_epoch(self.images, self.batch_size, self.world)

    def __getitem__(self, batch: int) -> Batch:
        start = batch * self.batch_size
        chosen = self.order[start : start + self.batch_size][self.rank :: self.world]
        indices = chosen % len(self.images)
        if isinstance(self.images, TextSet):
            return self.images.batch(indices), self.images.targets(indices, self.preprocessing)
        seen = as_images(self.preprocessing)
        size, source = seen.image_size, as_images(train_view(seen, self.options))
        fill = mean_colour(seen) if self.options.border == "plain" else None
        made = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
        chances = draws(self.seed, self.epoch, chosen.numpy())
        for place, index in enumerate(indices.tolist()):
            image = self.images.load(index, source)
            made[place] = augment(image, self.options, size, chances[place], fill)
        labels = self.images.targets(indices, source)
        if self.images.kind == "segmentation":
            maps = zip(labels, chances, strict=True)
            labels = torch.stack([augment_map(m, self.options, size, c) for m, c in maps])
        return made, labels


@dataclass
class EvalBatches(Dataset[Batch]):
    """All images once, in order, unaugmented; the last batch may be smaller, even empty."""

    images: Split
    preprocessing: Prepares
    _: KW_ONLY
    batch_size: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.images, TextSet):
            self.images = self.images.in_memory(self.preprocessing)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, batch: int) -> Batch:
        stop = min((batch + 1) * self.batch_size, len(self.images))
        indices = torch.arange(batch * self.batch_size, stop)[self.rank :: self.world]
        if isinstance(self.images, TextSet):
            return self.images.batch(indices), self.images.targets(indices, self.preprocessing)
        seen = as_images(self.preprocessing)
        made = torch.empty(len(indices), 3, seen.image_size, seen.image_size, dtype=torch.uint8)
        for place, index in enumerate(indices.tolist()):
            made[place] = self.images.load(index, seen)
        return made, self.images.targets(indices, seen)


def drawn(sampling: str | None, images: Split, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch's samples, int64 (n,), whose rests by n are the samples, see ``balanced``."""
    if sampling is None or not isinstance(images, LabelledSet):
        return shuffled(seed, epoch, len(images))
    return balanced(seed, epoch, images.labels)


def steps_in_epoch(images: Split, batch_size: int, world: int = 1) -> int:
    """Return the number of batches that TrainBatches makes of ``images``."""
    return len(images) // _real_batch(images, batch_size, world)


def _real_batch(images: Split, batch_size: int, world: int) -> int:
    """A set smaller than a batch is one batch; every process gets the same number of samples."""
    return min(batch_size, len(images) // world * world)


def train_view(preprocessing: Prepares, options: Augment) -> Prepares:
    """Return how training samples are kept before augmentation: images are larger if crops follow."""
    if isinstance(preprocessing, TextPreprocessing):
        return preprocessing
    return replace(preprocessing, image_size=options.source_side(preprocessing.image_size))


def serve(
    batches: TrainBatches | EvalBatches, *, start: int = 0, workers: int = 0, pin: bool = False
) -> Iterator[Batch]:
    """Yield the batches from ``start`` on; of files, made ahead in ``workers`` processes."""
    images = batches.images
    in_files = not isinstance(images, TextSet) and images.images is None
    loader: DataLoader[Batch] = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers if in_files else 0,
        pin_memory=pin,
    )
    try:
        yield from loader
    except DataError as error:
        # A worker's error comes with its traceback in its message, the message itself in the last line.
        whole = str(error).rstrip()
        said = whole.rpartition("\n")[2].partition("Error: ")[2] if "\n" in whole else whole
        raise type(error)(said) from error


def draws(seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the random numbers that ``augment`` uses up for each of ``indices``, float64 (n, 7).

    >>> draws(0, 1, np.arange(5)).shape
    (5, 7)
    """
    return uniforms(seed, epoch + _STREAM, indices, _DRAWS)


def mean_colour(preprocessing: Preprocessing) -> Tensor:
    """Return the colour that the network sees as 0, uint8 (3, 1, 1).

    >>> mean_colour(Preprocessing(8, mean=(0.5, 0.2, 0.0))).flatten()
    tensor([128,  51,   0], dtype=torch.uint8)
    """
    return (255 * torch.tensor(preprocessing.mean)).round().clamp(0, 255).byte().view(3, 1, 1)


def choose_border(options: Augment, images: Split, preprocessing: Prepares) -> Augment:
    """Return ``options`` with the border that is best for these training images in place of ``auto``.

    >>> drawings = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    >>> choose_border(Augment(), ImageSet(("a", "b"), torch.arange(2), drawings), Preprocessing(8)).border
    'mirror'
    """
    if options.border != "auto":
        return options
    plain = (
        isinstance(images, ImageSet)
        and len(images) < _FEW
        and not options.flip
        and not _blank(images, as_images(preprocessing))
    )
    return replace(options, border="plain" if plain else "mirror")


def _blank(images: ImageSet, preprocessing: Preprocessing) -> bool:
    """Whether most images have an edge of one colour, as drawings on paper do; a sample of them is looked at."""
    deviations = []
    for index in torch.linspace(0, len(images) - 1, min(len(images), 64)).long().tolist():
        image = images.load(index, preprocessing)
        edge = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1).float()
        deviations.append((edge - edge.median(1, keepdim=True).values).abs().mean())
    return bool(torch.stack(deviations).median() < _BLANK)


def augment(
    image: Tensor,
    options: Augment,
    size: int,
    chances: npt.NDArray[np.float64],
    fill: Tensor | None = None,
) -> Tensor:
    """Return an augmented copy of ``image``, uint8 (3, s, s), as uint8 (3, size, size).

    What a shift leaves open becomes ``fill``, (3, 1, 1), or the image's mirror image.

    >>> image = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    >>> augment(image, Augment(), 4, draws(0, 1, np.array([2]))[0]).shape
    torch.Size([3, 4, 4])
    """
    if options.policy != "none":
        image = _by_policy(image, options.policy, int(chances[6] * 2**53))
    return _moved(image, options, size, chances, fill=fill)


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
    fill: Tensor | None = None,
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
        image = _shifted(
            image, int(dy * (2 * most + 1)) - most, int(dx * (2 * most + 1)) - most, fill
        )
    if options.flip and mirror < 0.5:
        image = image.flip(-1)
    return image


def _shifted(image: Tensor, dy: int, dx: int, fill: Tensor | None) -> Tensor:
    """``image`` moved by (dy, dx) pixels, the gap filled with a colour or its mirror image."""
    if fill is not None:
        height, width = image.shape[-2:]
        moved = fill.expand_as(image).clone()
        moved[:, max(0, -dy) : height - dy, max(0, -dx) : width - dx] = image[
            :, max(0, dy) : height + dy, max(0, dx) : width + dx
        ]
        return moved
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
