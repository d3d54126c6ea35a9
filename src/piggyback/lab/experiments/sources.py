"""Where an experiment's backbones and images come from: from disk, or made up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from piggyback.errors import DataError
from piggyback.images.label_maps import SegmentationSet
from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.datasets import DATASETS, dataset, load, locate, missing
from piggyback.lab.datasets.unpack import unpacked
from piggyback.lab.experiments.manifest import BackboneChoice, Manifest, Source
from piggyback.network.backbone import Backbone
from piggyback.network.segmentation import SegmentationNetwork
from piggyback.train import ImageData, from_tensors, load_folder, load_table
from piggyback.train.data.columns import is_table
from piggyback.train.data.sets import ImageSet
from piggyback.train.data.text import TextSet
from piggyback.zoo.load import load_backbone
from piggyback.zoo.segmentation import PREFIX


@dataclass
class Sources:
    """Data sets of the registry, and folders, below ``roots``; backbones by name. Sent to worker processes."""

    roots: tuple[Path, ...] = ()
    download: bool = False
    folders: Mapping[str, Source] = field(default_factory=dict)
    """Of tasks whose images are not a data set of the registry."""

    def backbone(self, choice: BackboneChoice, image_size: int | None) -> Backbone:
        """Return a backbone for images of that side; raises DataError where its checkpoint is missing."""
        place = None if choice.checkpoint is None else self._checkpoint(choice.spec, choice)
        return load_backbone(
            choice.spec, pretrained=choice.pretrained, checkpoint=place, image_size=image_size
        )

    def data(self, task: str) -> ImageData:
        """Return the samples of a data set, a folder or a table; raises DataError where they are missing or damaged."""
        source = self.folders.get(task)
        if source is None:
            return load(task, self.roots, download=self.download)
        place = self._folder(task, source)
        if _is_table(place):
            data = load_table(place, task, kind=source.kind)
            return data if source.train_per_class is None else _few(data, source.train_per_class)
        if not place.is_dir():
            place = unpacked(place, (source.folder,))
        return load_folder(
            place, task, classes=source.classes, train_per_class=source.train_per_class
        )

    def prepared(self, task: str) -> Mapping[str, Any]:
        """Return size, crop and flip as the paper has them for this set, by recipe field; nothing for a folder."""
        if task in self.folders:
            return {}
        info = dataset(task)
        return {
            "image_size": info.image_size,
            "crop_pct": info.crop_pct,
            "augment.flip": info.flip,
        }

    def train_images(self, task: str) -> int:
        """Return the published number; of a folder or a table, that of its images."""
        if task not in self.folders:
            return dataset(task).counts["train"]
        try:
            place = self._folder(task, self.folders[task])
        except DataError:
            return 0
        return len(self.data(task).train) if place.is_dir() or _is_table(place) else 0

    def missing(self, manifest: Manifest) -> dict[str, str]:
        """Return what is not there, by name: where it was looked for and how to get it."""
        lines = {}
        for task in manifest.tasks:
            if (source := self.folders.get(task)) is not None:
                try:
                    self._folder(task, source)
                except DataError as error:
                    lines[task] = str(error)
            elif locate(task, self.roots) is None and not (
                self.download and dataset(task).download is not None
            ):
                lines[task] = missing(task, self.roots)
        for name, choice in manifest.backbones.items():
            if choice.checkpoint is not None:
                try:
                    self._checkpoint(name, choice)
                except DataError as error:
                    lines[name] = str(error)
        return lines

    def _folder(self, task: str, source: Source) -> Path:
        """Where a source lies: its folder or .tar, or its table; DataError for options that it cannot have."""
        place = self._find(
            f"source {task!r}: no folder or table {source.folder!r}",
            "put it there as <split>/<class>/<file> or as a table, or give --data",
            source.folder,
            f"{source.folder}.tar",
        )
        plain = source.kind == "classification"
        if _is_table(place) and source.classes is not None:
            raise DataError(
                f"source {task!r}: classes are for folders, and {source.folder!r} is a table: leave its rows out there"
            )
        if not _is_table(place) and not plain:
            raise DataError(
                f"source {task!r}: kind {source.kind!r} is for tables: expected none for a folder"
            )
        if source.train_per_class is not None and not plain:
            raise DataError(
                f"source {task!r}: train_per_class is for tasks with one class per row: expected none for "
                f"{source.kind!r}"
            )
        return place

    def _checkpoint(self, name: str, choice: BackboneChoice) -> Path:
        return self._find(
            f"backbone {name!r}: no file {choice.checkpoint!r}",
            f"put the weights of {choice.spec} there",
            str(choice.checkpoint),
        )

    def _find(self, lack: str, remedy: str, *names: str) -> Path:
        """The first of ``names`` that is below a root, or there from here; DataError where none is."""
        roots = (*self.roots, Path())
        for place in (root / name for root in roots for name in names):
            if place.exists():
                return place
        raise DataError(f"{lack} in {', '.join(map(str, roots))}; {remedy}")


SIDE = 16
"""Of a toy's images, in pixels."""
_CLASSES, _EACH = 3, 12
_RECIPE = {
    "epochs": 4, "batch_size": 8, "image_size": SIDE,
    "amp": "no", "channels_last": "no",
}  # fmt: skip
_SMALLER = (*_RECIPE, "crop_pct", "lora_rank", "lora_bytes", "prune_epochs", "mask_lr")


def toy(manifest: Manifest) -> Manifest:
    """Return a manifest with the same rows and columns whose cells take a second each."""

    def cut(options: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in options.items() if key not in _SMALLER}

    def two(trials: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
        """Those that still differ."""
        made = [cut(trial) for trial in trials]
        return tuple(t for at, t in enumerate(made) if t not in made[:at])[:2]

    changes = {
        "tasks": {task: cut(options) for task, options in manifest.tasks.items()},
        "methods": {
            label: method.model_copy(
                update={"recipe": cut(method.recipe), "trials": two(method.trials)}
            )
            for label, method in manifest.methods.items()
        },
        "recipe": {**cut(manifest.recipe), **_RECIPE, "mask_lr": 2e-3, "lora_rank": 1},
        "seeds": manifest.seeds[:2],
    }
    return manifest.model_copy(update=changes)


class Toy(Sources):
    """Sources of a toy: nothing is read, nothing is downloaded, nothing can be missing."""

    def backbone(self, choice: BackboneChoice, image_size: int | None) -> Backbone:
        """Return a small random network, for segmentation where the spec says so."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fine = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
            coarse = nn.Sequential(
                nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()
            )
            pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))
            network: nn.Module = nn.Sequential(fine, coarse, *pooled)
            head = "4"
            if choice.spec.startswith(PREFIX):
                network, head = SegmentationNetwork(_Features(fine, coarse), (12, 16)), "head"
        return Backbone(network.eval(), "", Preprocessing(SIDE), head)

    def data(self, task: str) -> ImageData:
        """Return a few images of a few classes, told apart by a colour under noise."""
        info = DATASETS.get(task)  # None for a folder, which holds images of more classes
        count = _CLASSES if info is None else min(info.classes, _CLASSES)
        names = tuple(f"class {label}" for label in range(count))
        generator = torch.Generator().manual_seed(len(task))
        labels = torch.arange(_EACH * len(names)) % len(names)
        images = torch.rand(len(labels), 3, SIDE, SIDE, generator=generator) * 120
        images[torch.arange(len(labels)), labels] += 100
        if info is None or info.kind == "classification":
            return from_tensors(task, names, (images.byte(), labels))
        maps = labels.byte().view(-1, 1, 1).expand(-1, SIDE, SIDE).contiguous()
        parts = zip(images.byte().chunk(3), maps.chunk(3), strict=True)  # all classes in each
        train, val, test = (SegmentationSet(names, *part) for part in parts)
        return ImageData(task, train, val, test)

    def prepared(self, task: str) -> Mapping[str, Any]:
        """Return nothing: the images are made as they are needed."""
        return {}

    def train_images(self, task: str) -> int:
        """Return the number of made-up images."""
        return _EACH * _CLASSES

    def missing(self, manifest: Manifest) -> dict[str, str]:
        """Return nothing."""
        return {}


class _Features(nn.Module):
    """Two feature maps, the finer one first."""

    def __init__(self, fine: nn.Module, coarse: nn.Module) -> None:
        super().__init__()
        self.fine, self.coarse = fine, coarse

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return maps at the images' size and at half of it."""
        fine = self.fine(x)
        return [fine, self.coarse(fine)]


def _few(data: ImageData, each: int) -> ImageData:
    """The same with at most ``each`` training rows of every class, the table's first."""
    train = cast(ImageSet | TextSet, data.train)
    kept = [(train.labels == label).nonzero()[:each, 0] for label in range(len(data.classes))]
    return replace(data, train=train.subset(torch.cat(kept).sort().values))


def _is_table(place: Path) -> bool:
    """Whether a source is read as a table; a tar alone is a folder, packed."""
    return place.suffix != ".tar" and is_table(place)
