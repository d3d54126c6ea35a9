"""Batches of uint8 images in an order, and with an augmentation, fixed by (seed, epoch).

A batch is a place in the epoch's order, cut over the processes: process r of w takes every w-th of
its samples. So batch b can be made at any time by anyone, which is what a resume in mid-epoch,
loader workers and several processes need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from piggyback.images.preprocessing import Preprocessing
from piggyback.train.data.augment import augment, augment_map, draws
from piggyback.train.data.sets import Split
from piggyback.train.hashing import shuffled
from piggyback.train.recipe import Augment

Batch = tuple[Tensor, Tensor]
"""Images uint8 (n, 3, s, s), and labels int64 (n,) or label maps uint8 (n, s, s)."""


class TrainBatches(Dataset[Batch]):
    """Shuffled, augmented batches of one epoch; an incomplete last one is left out.

    ``batch_size`` counts the samples of all processes together.
    """

    def __init__(
        self,
        images: Split,
        preprocessing: Preprocessing,
        options: Augment,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.images, self.options, self.size = images, options, preprocessing.image_size
        self.source = source_view(preprocessing, options)
        self.batch_size = _real_batch(images, batch_size, world)
        self.seed, self.epoch = seed, epoch
        self.rank, self.world = rank, world
        self.order = torch.from_numpy(shuffled(seed, epoch, len(images)))

    def __len__(self) -> int:
        return steps_in_epoch(self.images, self.batch_size, self.world)

    def __getitem__(self, batch: int) -> Batch:
        start = batch * self.batch_size
        indices = self.order[start : start + self.batch_size][self.rank :: self.world]
        made = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8)
        chances = draws(self.seed, self.epoch, indices.numpy())
        for place, index in enumerate(indices.tolist()):
            image = self.images.load(index, self.source)
            made[place] = augment(image, self.options, self.size, chances[place])
        labels = self.images.targets(indices, self.source)
        if self.images.kind == "segmentation":
            maps = zip(labels, chances, strict=True)
            labels = torch.stack([augment_map(m, self.options, self.size, c) for m, c in maps])
        return made, labels


class EvalBatches(Dataset[Batch]):
    """All images once, in order, unaugmented; the last batch may be smaller, even empty."""

    def __init__(
        self,
        images: Split,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.images, self.preprocessing, self.batch_size = images, preprocessing, batch_size
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, batch: int) -> Batch:
        stop = min((batch + 1) * self.batch_size, len(self.images))
        indices = torch.arange(batch * self.batch_size, stop)[self.rank :: self.world]
        size = self.preprocessing.image_size
        made = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
        for place, index in enumerate(indices.tolist()):
            made[place] = self.images.load(index, self.preprocessing)
        return made, self.images.targets(indices, self.preprocessing)


def steps_in_epoch(images: Split, batch_size: int, world: int = 1) -> int:
    """Return the number of batches that TrainBatches makes of ``images``."""
    return len(images) // _real_batch(images, batch_size, world)


def _real_batch(images: Split, batch_size: int, world: int) -> int:
    """A set smaller than a batch is one batch; every process gets the same number of samples."""
    return min(batch_size, len(images) // world * world)


def source_view(preprocessing: Preprocessing, options: Augment) -> Preprocessing:
    """Return how training images are kept before augmentation: larger if crops follow."""
    return replace(preprocessing, image_size=options.source_side(preprocessing.image_size))


def serve(
    batches: TrainBatches | EvalBatches, *, start: int = 0, workers: int = 0, pin: bool = False
) -> Iterator[Batch]:
    """Return the batches from ``start`` on; of files, made ahead in ``workers`` processes."""
    loader: DataLoader[Batch] = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers if batches.images.images is None else 0,
        pin_memory=pin,
    )
    return iter(loader)
