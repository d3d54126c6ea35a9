"""``piggyback predict``: classes of image files, or of their pixels."""

from __future__ import annotations

import csv
import enum
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.table import Table

from piggyback.cli.asking import ask, refuse_local, task_files
from piggyback.cli.flags import (
    CheckpointOption,
    HeadOption,
    OtherBackboneOption,
    TokenFileOption,
)
from piggyback.cli.loading import Loaded, load_tasks
from piggyback.cli.screen import results, write_json
from piggyback.errors import InputError
from piggyback.model.routing import confidence
from piggyback.train.evaluation import (
    Prediction,
    Segmented,
    colours_of,
    find_images,
    predict,
    save_label_map,
    segment,
)


class Format(enum.StrEnum):
    """How answers are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


@dataclass(frozen=True)
class Answer:
    """What one task says about one image."""

    file: str
    task: str
    classes: tuple[str, ...]
    """Likeliest first."""
    probabilities: tuple[float, ...]
    confidence: float
    """1 - entropy / log(classes), in [0, 1]: by which the task is inferred."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        pairs = zip(self.classes, self.probabilities, strict=True)
        return {
            "file": self.file,
            "task": self.task,
            "confidence": round(self.confidence, 6),
            "classes": [{"class": name, "probability": round(p, 6)} for name, p in pairs],
        }


def run(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Image files, folders, or quoted globs."),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="A task file; with --url a task's name. May be repeated."
        ),
    ] = None,
    infer_task: Annotated[
        bool,
        typer.Option("--infer-task", help="Of several tasks, give the surest one's answer only."),
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="How many classes to give.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the label maps of a segmentation task."),
    ] = None,
    format: Annotated[Format, typer.Option(help="How to write the answers.")] = Format.TABLE,
    json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    backbone: OtherBackboneOption = None,
    checkpoint: CheckpointOption = None,
    head: HeadOption = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url", metavar="URL", help="Ask the server there: see `piggyback serve --help`."
        ),
    ] = None,
    token_file: TokenFileOption = None,
) -> None:
    """Classify images, or their pixels, with one or more task files.

    Several task files answer from one network, each for every image, or with
    --infer-task the one that is surest of the image. A segmentation task writes a
    label map for each image: a PNG of the image's size whose pixel values are the
    classes' numbers.

    With --url a running server answers, and its tasks go by name. With --infer-task
    and no name it chooses among all that it has.

    \b
    Examples:
      piggyback predict photo.jpg --task tasks/signs.safetensors
      piggyback predict photos/ "new/*.png" --task tasks/signs.safetensors --json
      piggyback predict photos/ --task a.safetensors --task b.safetensors
      piggyback predict photo.jpg --task signs.safetensors --top 1 --format csv
      piggyback predict streets/ --task camvid.safetensors --out maps
      piggyback predict photo.jpg --task signs --url http://127.0.0.1:8000
      piggyback predict photo.jpg --infer-task --url http://127.0.0.1:8000
    """
    if url is not None:
        refuse_local(backbone=backbone, checkpoint=checkpoint, head=head, out=out)
        files = find_images(images)
        told = ask(url, token_file, files, task or [], infer_task, top, batch_size)
        _show(
            [Answer(str(f), a.task, a.classes, a.probabilities, a.confidence) for f, a in told],
            "json" if json else format.value,
        )
        return
    paths = task_files(task or [], token_file)
    files = find_images(images)  # before the network is loaded: a wrong path is told at once
    loaded = load_tasks(paths, backbone, checkpoint, head)
    if any(header.info.kind == "segmentation" for header in loaded.headers):
        found = label_maps(loaded, files, out, batch_size)
        _show_maps(found, "json" if json else format.value, top)
        return
    if out is not None:
        raise InputError("--out is for the label maps of a segmentation task: leave it out")
    answers = answer(loaded, files, top, batch_size)
    if infer_task:
        answers = [max(group, key=lambda one: one.confidence) for group in _by_file(answers)]
    _show(answers, "json" if json else format.value)


def answer(
    loaded: Loaded, files: Sequence[str | Path], top: int, batch_size: int = 64
) -> list[Answer]:
    """Return every task's answer for every image, image by image."""
    found = []
    for header in loaded.headers:
        classes = max(len(header.info.classes), 1)
        whole = predict(loaded.model, header.name, files, top=classes, batch_size=batch_size)
        found.append([_answer(header.name, one, top) for one in whole])
    return [one for group in zip(*found, strict=True) for one in group]


def label_maps(
    loaded: Loaded, files: Sequence[Path], out: Path | None, batch_size: int = 64
) -> list[tuple[Path, Segmented]]:
    """Write a label map for each image; return where, and what was found, in the files' order.

    Raises InputError for several tasks, no folder, or images whose maps would have one name.
    """
    header = loaded.headers[0]
    if len(loaded.headers) > 1:
        raise InputError(
            f"task {header.name!r} and {len(loaded.headers) - 1} more: expected one task where one "
            "is a segmentation; run predict for each"
        )
    if out is None:
        raise InputError(
            f"task {header.name!r} labels every pixel: give --out DIR for its label maps"
        )
    places: dict[Path, Path] = {}
    for file in files:
        place = out / f"{file.stem}.png"
        if place in places:
            raise InputError(
                f"images {str(places[place])!r} and {str(file)!r} have one label map's name, "
                f"{place.name!r}: predict them into separate folders"
            )
        if place.resolve() == file.resolve():
            raise InputError(
                f"image {str(file)!r} lies where its label map goes: choose another --out"
            )
        places[place] = file
    colours = colours_of(header.info.classes)
    found = segment(loaded.model, header.name, files, batch_size=batch_size)
    made = []
    for place, one in zip(places, found, strict=True):
        save_label_map(one.labels, place, colours)
        made.append((place, one))
    return made


def _show(answers: Sequence[Answer], how: str) -> None:
    if how == "json":
        write_json([one.to_json() for one in answers])
    elif how == "csv":
        typer.echo(_csv(answers), nl=False)
    else:
        results().print(_table(answers))


def _show_maps(found: Sequence[tuple[Path, Segmented]], how: str, top: int) -> None:
    """Where each map is, and what share of the image the largest classes take."""
    if how == "json":
        write_json(
            [
                {
                    "file": str(one.file),
                    "labels": str(place),
                    "percent": {name: round(share, 4) for name, share in one.shares.items()},
                }
                for place, one in found
            ]
        )
    elif how == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "labels", "class", "percent"])
        for place, one in found:
            for name, share in one.shares.items():
                writer.writerow([one.file, place, name, f"{share:.4f}"])
        typer.echo(text.getvalue(), nl=False)
    else:
        table = Table("image", "label map", "largest (%)", box=box.SIMPLE_HEAD, pad_edge=False)
        table.columns[0].overflow = table.columns[1].overflow = "fold"
        for place, one in found:
            largest = list(one.shares.items())[:top]
            shares = ", ".join(f"{name} {share:.1f}" for name, share in largest)
            table.add_row(str(one.file), str(place), shares)
        results().print(table)


def _answer(task: str, found: Prediction, top: int) -> Answer:
    # Probabilities' logarithms are logits: the same rule as MultiTaskModel.infer_task.
    logits = torch.tensor([found.probabilities]).clamp_min(1e-30).log()
    sure = float(confidence(logits)) if len(found.classes) > 1 else 0.0
    return Answer(found.file, task, found.classes[:top], found.probabilities[:top], sure)


def _by_file(answers: Sequence[Answer]) -> list[list[Answer]]:
    groups: dict[str, list[Answer]] = {}
    for one in answers:
        groups.setdefault(one.file, []).append(one)
    return list(groups.values())


def _table(answers: Sequence[Answer]) -> Table:
    table = Table("image", "task", "class", "%", "next", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[0].overflow = table.columns[2].overflow = "fold"
    table.columns[3].justify = "right"
    for one in answers:
        pairs = [
            f"{name} {100 * p:.1f}"
            for name, p in zip(one.classes[1:], one.probabilities[1:], strict=True)
        ]
        table.add_row(
            one.file,
            one.task,
            one.classes[0],
            f"{100 * one.probabilities[0]:.1f}",
            ", ".join(pairs),
        )
    return table


def _csv(answers: Sequence[Answer]) -> str:
    """A line a class: file, task, rank from 1, class, probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "task", "rank", "class", "probability"])
    for one in answers:
        for rank, (name, p) in enumerate(zip(one.classes, one.probabilities, strict=True), 1):
            writer.writerow([one.file, one.task, rank, name, f"{p:.6f}"])
    return text.getvalue()
