"""``piggyback evaluate``: a task file's accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piggyback.cli.loading import is_data_set, load_tasks, naming_option, refuse_skip_bad
from piggyback.cli.options import (
    CheckpointOption,
    HeadOption,
    JsonOption,
    OtherBackboneOption,
    SkipBadOption,
)
from piggyback.cli.screen import notes, results, table, write_json
from piggyback.errors import DataError

if TYPE_CHECKING:
    from piggyback.taskfile.header import TaskHeader
    from piggyback.train.data.sets import Split


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
    split: Annotated[str, typer.Option(help="Which split, if DIR holds several.")] = "test",
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
    from piggyback.train.evaluation import evaluate

    with naming_option():
        given = _images(data, split, skip_bad)
    loaded = load_tasks([task], backbone, checkpoint, head)
    name = loaded.headers[0].name
    images, seen = _unseen(given, loaded.headers[0], split)
    if seen:
        measures = f"the {len(images)} that it held out as {split} are measured"
        rest = "all are measured" if images is given else measures
        notes().print(
            f"{name}: about {seen} of these {len(given)} images were used in its training; {rest}"
        )
    measured = evaluate(loaded.model, name, images, batch_size=batch_size)
    pixels = measured.kind == "segmentation"
    classes = measured.per_class_iou() if pixels else measured.per_class()
    if json:
        numbers: dict[str, Any] = {"accuracy": round(measured.accuracy, 4)}
        if pixels:
            numbers = {
                "mean_iou": round(measured.mean_iou, 4),
                "pixel_accuracy": round(measured.right, 4),
            }
        found = {"task": name, "images": len(images), "trained_on": seen, **numbers}
        write_json({**found, "loss": round(measured.loss, 6), "classes": classes})
        return
    screen = results()
    if pixels or per_class:
        titles = ("pixels", "IoU (%)") if pixels else ("images", "accuracy (%)")
        by_class = table("class", *titles)
        counts = measured.confusion.sum(1).tolist()
        for (label, value), count in zip(classes.items(), counts, strict=True):
            by_class.add_row(label, str(count), "-" if value is None else f"{value:.2f}")
        screen.print(by_class)
    if pixels:
        screen.print(
            f"{name}: mean IoU {measured.mean_iou:.2f}%, {measured.right:.2f}% of pixels right, "
            f"in {len(images)} images"
        )
    else:
        screen.print(f"{name}: {measured.accuracy:.2f}% of {measured.count} images right")


def _images(root: Path, split: str, skip_bad: bool) -> Split:
    """The split's images, or those of ``root`` itself where it holds class folders; or a data set's."""
    from piggyback.train.data.folder import split_folders

    if is_data_set(root, skip_bad):
        from piggyback.lab.datasets import load

        parts = load(str(root)).splits()
        if split not in parts:
            raise DataError(
                f"data set {str(root)!r} has no split {split!r}: it has {', '.join(parts)}"
            )
        return parts[split]
    folders = split_folders(root)
    if split in folders:
        return _split(folders[split], skip_bad)
    if folders:
        raise DataError(
            f"image folder {str(root)!r} has no split {split!r}: it holds "
            f"{', '.join(folder.name for folder in folders.values())}; choose one with --split"
        )
    return _split(root, skip_bad)


def _split(folder: Path, skip_bad: bool) -> Split:
    """One split's folder: of class folders, or of images and label maps."""
    from piggyback.train.data.folder import load_split
    from piggyback.train.data.segmentation import is_segmentation_folder, load_segmentation_split

    if is_segmentation_folder(folder):
        refuse_skip_bad(folder, skip_bad)
        return load_segmentation_split(folder)
    return load_split(folder, skip_bad=skip_bad)


def _unseen(images: Split, header: TaskHeader, split: str) -> tuple[Split, int]:
    """The images to measure, and how many of all were trained on.

    Of a flat folder that the task was trained on these are the ones that training took for ``split``.
    """
    from piggyback.train.data.sets import ImageSet, cut, seen_in

    data = header.info.provenance.get("data", {})
    seen = seen_in(images, data["learned_from"]) if "learned_from" in data else 0
    cuts = {each["split"]: each for each in data.get("cut", ()) if isinstance(each, dict)}
    flat = cuts.keys() == {"val", "test"}  # of a folder with splits val alone may have been cut
    if not seen or not flat or split not in cuts or not isinstance(images, ImageSet):
        return images, seen
    fractions = {f"{name}_fraction": each["fraction"] for name, each in cuts.items()}
    parts = cut(header.name, images, None, None, seed=cuts[split]["seed"], **fractions)
    return parts.splits()[split], seen
