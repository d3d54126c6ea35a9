"""``piggyback evaluate``: a task file's accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from piggyback.cli.flags import (
    CheckpointOption,
    HeadOption,
    JsonOption,
    OtherBackboneOption,
    SkipBadOption,
)
from piggyback.cli.loading import is_data_set, load_tasks, naming_option, refuse_skip_bad
from piggyback.cli.screen import results, write_json
from piggyback.errors import DataError
from piggyback.lab.datasets import load
from piggyback.train.data.folder import SPLITS, load_split
from piggyback.train.data.segmentation import is_segmentation_folder, load_segmentation_split
from piggyback.train.data.sets import Split
from piggyback.train.evaluation import Measured, evaluate


def run(
    task: Annotated[Path, typer.Argument(metavar="FILE", help="A task file.")],
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Images: DIR/SPLIT/CLASS/FILE, or DIR/CLASS/FILE; DIR/SPLIT/images and labels for "
            "segmentation; or a data set's name.",
        ),
    ],
    split: Annotated[str, typer.Option(help="Which split, where DIR holds several.")] = "test",
    per_class: Annotated[
        bool,
        typer.Option("--per-class", help="Show each class's accuracy; always for segmentation."),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    backbone: OtherBackboneOption = None,
    checkpoint: CheckpointOption = None,
    head: HeadOption = None,
    skip_bad: SkipBadOption = False,
    json: JsonOption = False,
) -> None:
    """Measure a task file on a folder of labelled images.

    The backbone and the preparation of images are those that the file names. A
    segmentation task is measured by its mean IoU, pixel by pixel, on label maps
    prepared as the images are.

    \b
    Examples:
      piggyback evaluate tasks/signs.safetensors --data photos/signs
      piggyback evaluate tasks/signs.safetensors --data photos/new --per-class
    """
    with naming_option():
        images = _images(data, split, skip_bad)
    loaded = load_tasks([task], backbone, checkpoint, head)
    name = loaded.headers[0].name
    measured = evaluate(loaded.model, name, images, batch_size=batch_size)
    if measured.kind == "segmentation":
        _show_segmentation(name, measured, len(images), json)
        return
    if json:
        write_json(
            {
                "task": name,
                "images": measured.count,
                "accuracy": round(measured.accuracy, 4),
                "loss": round(measured.loss, 6),
                "classes": measured.per_class(),
            }
        )
        return
    screen = results()
    if per_class:
        table = Table("class", "images", "accuracy (%)", box=box.SIMPLE_HEAD, pad_edge=False)
        counts = measured.confusion.sum(1).tolist()
        for (label, accuracy), count in zip(measured.per_class().items(), counts, strict=True):
            table.add_row(label, str(count), "-" if accuracy is None else f"{accuracy:.2f}")
        screen.print(table)
    screen.print(f"{name}: {measured.accuracy:.2f}% of {measured.count} images right")


def _show_segmentation(name: str, measured: Measured, images: int, json: bool) -> None:
    found = measured.per_class_iou()
    if json:
        write_json(
            {
                "task": name,
                "images": images,
                "mean_iou": round(measured.mean_iou, 4),
                "pixel_accuracy": round(measured.right, 4),
                "loss": round(measured.loss, 6),
                "classes": found,
            }
        )
        return
    screen = results()
    table = Table("class", "pixels", "IoU (%)", box=box.SIMPLE_HEAD, pad_edge=False)
    counts = measured.confusion.sum(1).tolist()
    for (label, iou), count in zip(found.items(), counts, strict=True):
        table.add_row(label, str(count), "-" if iou is None else f"{iou:.2f}")
    screen.print(table)
    screen.print(
        f"{name}: mean IoU {measured.mean_iou:.2f}%, {measured.right:.2f}% of pixels right, "
        f"in {images} images"
    )


def _split(folder: Path, skip_bad: bool) -> Split:
    """One split's folder: of class folders, or of images and label maps."""
    if is_segmentation_folder(folder):
        refuse_skip_bad(folder, skip_bad)
        return load_segmentation_split(folder)
    return load_split(folder, skip_bad=skip_bad)


def _images(root: Path, split: str, skip_bad: bool) -> Split:
    """The split's images, or those of ``root`` itself where it holds class folders; or a data set's."""
    if is_data_set(root, skip_bad):
        parts = load(str(root)).splits()
        if split not in parts:
            raise DataError(
                f"data set {str(root)!r} has no split {split!r}: it has {', '.join(parts)}"
            )
        return parts[split]
    names = SPLITS.get(split, (split,))
    for name in names:
        if (root / name).is_dir():
            return _split(root / name, skip_bad)
    held = [n for known in SPLITS.values() for n in known if (root / n).is_dir()]
    if held:
        raise DataError(
            f"image folder {str(root)!r} has no split {split!r}: it holds {', '.join(held)}; "
            "choose one with --split"
        )
    return _split(root, skip_bad)
