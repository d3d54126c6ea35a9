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
from piggyback.cli.loading import load_tasks, naming_option
from piggyback.cli.screen import results, write_json
from piggyback.errors import DataError
from piggyback.training.data import ImageSet
from piggyback.training.evaluate import evaluate
from piggyback.training.folder import SPLITS, load_split


def run(
    task: Annotated[Path, typer.Argument(metavar="FILE", help="A task file.")],
    data: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Images: DIR/SPLIT/CLASS/FILE, or DIR/CLASS/FILE."),
    ],
    split: Annotated[str, typer.Option(help="Which split, where DIR holds several.")] = "test",
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Show each class's accuracy.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    backbone: OtherBackboneOption = None,
    checkpoint: CheckpointOption = None,
    head: HeadOption = None,
    skip_bad: SkipBadOption = False,
    json: JsonOption = False,
) -> None:
    """Measure a task file on a folder of labelled images.

    The backbone and the preparation of images are those that the file names.

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


def _images(root: Path, split: str, skip_bad: bool) -> ImageSet:
    """The split's images, or those of ``root`` itself where it holds class folders."""
    names = SPLITS.get(split, (split,))
    for name in names:
        if (root / name).is_dir():
            return load_split(root / name, skip_bad=skip_bad)
    held = [n for known in SPLITS.values() for n in known if (root / n).is_dir()]
    if held:
        raise DataError(
            f"image folder {str(root)!r} has no split {split!r}: it holds {', '.join(held)}; "
            "choose one with --split"
        )
    return load_split(root, skip_bad=skip_bad)
