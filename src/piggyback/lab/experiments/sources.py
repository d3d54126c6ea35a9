"""Where an experiment's backbones and images come from, and what of them is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from piggyback.errors import DataError
from piggyback.lab.datasets import dataset, load, locate, missing
from piggyback.lab.datasets.unpack import unpacked
from piggyback.lab.experiments.manifest import BackboneChoice, Manifest, Source
from piggyback.network.backbone import Backbone
from piggyback.train import ImageData, load_folder
from piggyback.zoo.load import load_backbone


class Sources(Protocol):
    """Gives an experiment what it trains on; sent to worker processes, so it can be pickled."""

    def backbone(self, choice: BackboneChoice, image_size: int | None) -> Backbone:
        """Return a backbone for images of that side."""

    def data(self, task: str) -> ImageData:
        """Return a task's images."""

    def prepared(self, task: str) -> Mapping[str, Any]:
        """Return the recipe fields that the task's images ask for, by dotted name."""

    def train_images(self, task: str) -> int:
        """Return how many images there are to learn from, about, without reading them."""

    def missing(self, manifest: Manifest) -> dict[str, str]:
        """Return what is not there, by name: where it was looked for and how to get it."""


@dataclass(frozen=True)
class FromDisk:
    """Data sets of the registry, and folders, below ``roots``; backbones by name."""

    roots: tuple[Path, ...]
    download: bool = False
    folders: Mapping[str, Source] = field(default_factory=dict)
    """Of tasks whose images are no data set of the registry."""

    def backbone(self, choice: BackboneChoice, image_size: int | None) -> Backbone:
        """Return a backbone; raises DataError where its checkpoint is missing."""
        place = None if choice.checkpoint is None else self._checkpoint(choice.checkpoint)
        if choice.checkpoint is not None and place is None:
            raise DataError(self._no_checkpoint(choice))
        return load_backbone(
            choice.spec,
            pretrained=choice.pretrained,
            checkpoint=place,
            image_size=image_size,
        )

    def data(self, task: str) -> ImageData:
        """Return a data set or a folder's images; raises DataError where they are missing or damaged."""
        if (source := self.folders.get(task)) is not None:
            place = self._folder(source)
            if place is None:
                raise DataError(self._no_folder(task, source))
            if not place.is_dir():
                place = unpacked(place, (source.folder,))
            return load_folder(
                place, task, classes=source.classes, train_per_class=source.train_per_class
            )
        return load(task, self.roots, download=self.download)

    def prepared(self, task: str) -> Mapping[str, Any]:
        """Return size, crop and flip as the paper has them for this set; nothing for a folder."""
        if task in self.folders:
            return {}
        info = dataset(task)
        return {
            "image_size": info.image_size,
            "crop_pct": info.crop_pct,
            "augment.flip": info.flip,
        }

    def train_images(self, task: str) -> int:
        """Return the published number; of a folder, that of its files."""
        if (source := self.folders.get(task)) is not None:
            place = self._folder(source)
            return 0 if place is None or not place.is_dir() else len(self.data(task).train)
        return int(dataset(task).counts["train"])

    def missing(self, manifest: Manifest) -> dict[str, str]:
        """Return a line for each data set and checkpoint that is not there."""
        lines = {}
        for task in manifest.tasks:
            if (source := self.folders.get(task)) is not None:
                if self._folder(source) is None:
                    lines[task] = self._no_folder(task, source)
                continue
            can_get = self.download and dataset(task).download is not None
            if locate(task, self.roots) is None and not can_get:
                lines[task] = missing(task, self.roots)
        for choice in manifest.backbones:
            if choice.checkpoint is not None and self._checkpoint(choice.checkpoint) is None:
                lines[choice.name] = self._no_checkpoint(choice)
        return lines

    def _folder(self, source: Source) -> Path | None:
        """Where a source lies: its folder, or its .tar."""
        places = [root / name for root in (*self.roots, Path()) for name in _packed(source.folder)]
        return next((place for place in places if place.exists()), None)

    def _no_folder(self, task: str, source: Source) -> str:
        places = ", ".join(str(root) for root in (*self.roots, Path()))
        return (
            f"source {task!r}: no folder {source.folder!r} in {places}; "
            "put it there as <split>/<class>/<file>, or give --data"
        )

    def _checkpoint(self, name: str) -> Path | None:
        places: Sequence[Path] = (Path(), *self.roots)
        return next((root / name for root in places if (root / name).is_file()), None)

    def _no_checkpoint(self, choice: BackboneChoice) -> str:
        places = ", ".join(str(root) for root in (Path(), *self.roots))
        return (
            f"backbone {choice.name!r}: no file {choice.checkpoint!r} in {places}; "
            f"put the weights of {choice.spec} there"
        )


def _packed(folder: str) -> tuple[str, str]:
    return folder, f"{folder}.tar"
