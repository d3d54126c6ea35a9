"""``piggyback evaluate``: a task file's accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from piggyback.cli.computing import DeviceOption, ThreadsOption, compute_with
from piggyback.cli.loading import (
    check_folder,
    is_data_set,
    load_set,
    load_tasks,
    read_answering,
    refuse_skip_bad,
    refuse_table_options,
)
from piggyback.cli.options import (
    CheckpointOption,
    ColumnOption,
    HeadOption,
    JsonOption,
    OtherBackboneOption,
    SeparatorOption,
    SkipBadOption,
    columns_of,
)
from piggyback.cli.screen import notes, results, table, write_json
from piggyback.errors import DataError, InputError, require
from piggyback.images.preprocessing import Preprocessing
from piggyback.taskfile.header import read_header
from piggyback.texts.preprocessing import as_images

if TYPE_CHECKING:
    from piggyback.kinds.base import Score
    from piggyback.model.multitask import MultiTaskModel
    from piggyback.taskfile.header import TaskHeader
    from piggyback.train.data.sets import Split

T = TypeVar("T")
SHEET_SIDE = 128
"""Pixels of a picture on a report's contact sheet."""


def run(
    task: Annotated[Path, typer.Argument(metavar="FILE", help="A task file.")],
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Images: DIR/SPLIT/CLASS/FILE, or DIR/CLASS/FILE; DIR/SPLIT/images and labels for "
            "segmentation; or a data set's name. A table: FILE.csv, .tsv, .jsonl or .parquet, tars, or hf:NAME. Or "
            "torchvision:CLASS:ROOT.",
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
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for a report: a page with plots and the most confident mistakes, JSON, CSV; "
            "needs the extra plots.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Another task file of the same classes: is the difference more than chance?",
        ),
    ] = None,
    column: ColumnOption = None,
    separator: SeparatorOption = ",",
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a task file on labelled images or texts.

    The backbone and the preparation of inputs are those that the file names. A
    segmentation task is measured by its mean IoU, pixel by pixel, on label maps
    prepared as the images are.

    \b
    Examples:
      piggyback evaluate tasks/signs.safetensors --data photos/signs
      piggyback evaluate tasks/signs.safetensors --data photos/new --per-class
      piggyback evaluate signs.safetensors --data photos --report found
      piggyback evaluate new.safetensors --data photos --compare old.safetensors
    """
    compute_with(threads, device)
    if report is not None:
        require("matplotlib", "plots")
        check_folder(report, "--report", [data])
    from piggyback.train.evaluation import evaluate

    header = read_answering(task)
    name, kind = header.name, header.info.kind
    given, groups = _images(data, split, skip_bad, columns_of(column), kind, separator)
    model = load_tasks([task], backbone, checkpoint, head)
    images, seen, rest = _unseen(given, header, split, groups)
    if seen:
        notes().print(
            f"{name}: about {seen} of these {len(given)} {given.what} were used in its training; {rest}"
        )
    other = None
    if compare is not None:
        other = _other(compare, task, header, (backbone, checkpoint, head))
    gap = None
    if report or other:
        measured, gap = _report(model, header, other, images, report, batch_size)
    else:
        measured = evaluate(model, name, images, batch_size=batch_size)
    plain = measured.kind == "classification"
    titles, rows = measured.by_class()
    if json:
        numbers = {key: round(value, 6) for key, value in measured.numbers().items()}
        found: dict[str, Any] = {"task": name, "images": len(images), "trained_on": seen, **numbers}
        if gap is not None:
            found["compared"] = gap
        # A class's accuracy or IoU has stood alone from the first version on.
        one = plain or measured.kind == "segmentation"
        keys = [key.removesuffix(" (%)").replace(" ", "_").lower() for key in titles]
        classes: dict[str, Any] = {
            label: row[-1] if one else dict(zip(keys, row, strict=True))
            for label, row in rows.items()
        }
        write_json({**found, "loss": round(measured.loss, 6), "classes": classes})
        return
    screen = results()
    if per_class or not plain:
        by_class = table("class", *titles)
        for label, row in rows.items():
            by_class.add_row(label, *map(_number, row))
        screen.print(by_class)
    screen.print(f"{name}: {measured.summary(f'{len(images)} {images.what}')}")


def _number(value: float | None) -> str:
    """A number of a table as text."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _other(file: Path, first: Path, header: TaskHeader, network: Any) -> MultiTaskModel:
    """The task that is compared, beside its own backbone; InputError unless it gives the same kind of answers."""
    own = read_header(file)
    if (own.info.kind, own.info.classes) != (header.info.kind, header.info.classes):
        raise InputError(
            f"{str(file)!r} is a {own.info.kind} of {len(own.info.classes)} classes, {str(first)!r} one of kind "
            f"{header.info.kind} and {len(header.info.classes)}: expected the same classes to compare them"
        )
    return load_tasks([file], *network)


def _report(
    model: MultiTaskModel,
    header: TaskHeader,
    other: MultiTaskModel | None,
    images: Split,
    folder: Path | None,
    batch_size: int,
) -> tuple[Score, dict[str, Any] | None]:
    """Measure; write the report into ``folder``, if given; show how the two tasks differ, if there are two."""
    from piggyback.train.data.text import TextSet
    from piggyback.train.outcome import outcome_of
    from piggyback.train.report import compared, in_digits, report_on

    name, gap = header.name, None
    score, outcome = outcome_of(model, name, images, batch_size=batch_size)
    if other is not None:
        (label,) = other.task_names
        _, second = outcome_of(other, label, images, batch_size=batch_size)
        label += " (other)" * (label == name)
        gap = compared(outcome, replace(second, task=label))
        between = gap["difference"]
        chance = "" if "mcnemar" not in gap else f"; McNemar's p = {gap['mcnemar']['p']:.3g}"
        notes().print(
            f"{gap['score']}: {in_digits(gap[outcome.task])}% against {in_digits(gap[label])}% of {label}: "
            f"{in_digits(between['value'], '+.2f')} (95% interval {in_digits(between['low'], '+.2f')} to "
            f"{in_digits(between['high'], '+.2f')}){chance}",
            soft_wrap=True,
        )
    if folder is not None:
        from piggyback.images.pictures import Pictures
        from piggyback.lab.tables.report import write_report

        files = getattr(images, "files", ())
        files = () if isinstance(files, Pictures) else files
        names = [str(file) for file in files] or [str(i) for i in range(len(images))]
        about = {"backbone": header.info.backbone.source, images.what: str(len(images))}
        if isinstance(images, TextSet):
            write_report(folder, report_on(outcome), images.texts, None, about, gap)
        else:
            shown, seen = images, as_images(header.info.preprocessing or Preprocessing())
            view = replace(seen, image_size=SHEET_SIDE)

            def picture(index: int) -> Any:
                return shown.load(index, view).permute(1, 2, 0).numpy()

            write_report(folder, report_on(outcome), names, picture, about, gap)
        notes().print(f"wrote {folder / 'index.html'}", soft_wrap=True)
    return score, gap


def _images(
    root: Path, split: str, skip_bad: bool, columns: Mapping[str, str], kind: str, separator: str
) -> tuple[Split, Any]:
    """The split's images, or those of ``root`` itself where it holds class folders; or a data set's, or a table's.

    And the groups of a table's rows.
    """
    from piggyback.train.data.columns import is_table
    from piggyback.train.data.table import Table

    if is_table(root):
        refuse_skip_bad(root, skip_bad)
        read = Table(root, columns, kind, separator)
        found = read.splits
        if len(found) == 1:
            (split,) = found
        return _chosen(f"table {str(root)!r}", found, split), read.groups_of(split)
    refuse_table_options(columns)
    from piggyback.train.data.folder import split_folders

    if is_data_set(root, skip_bad):
        return _chosen(f"data set {str(root)!r}", load_set(str(root)).splits(), split), None
    folders = split_folders(root)
    place = _chosen(f"image folder {str(root)!r}", folders, split) if folders else root
    return _split(place, skip_bad), None


def _chosen(what: str, parts: Mapping[str, T], split: str) -> T:
    if split not in parts:
        raise DataError(
            f"{what} has no split {split!r}: it has {', '.join(parts)}; choose one with --split"
        )
    return parts[split]


def _split(folder: Path, skip_bad: bool) -> Split:
    """One split's folder: of class folders, or of images and label maps."""
    from piggyback.train.data.folder import load_split
    from piggyback.train.data.segmentation import is_segmentation_folder, load_segmentation_split

    if is_segmentation_folder(folder):
        refuse_skip_bad(folder, skip_bad)
        return load_segmentation_split(folder)
    return load_split(folder, skip_bad=skip_bad)


def _unseen(
    images: Split, header: TaskHeader, split: str, groups: Any
) -> tuple[Split, int | None, str]:
    """The images to measure, how many of all were trained on, and in words which are measured.

    Of a flat folder that the task was trained on these are the ones that training took for ``split``.
    """
    from piggyback.train.data.labelled import LabelledSet
    from piggyback.train.data.sets import Cut, cut_off, seen_in

    data = header.info.provenance.get("data", {})
    sketch = data.get("learned_from")
    seen = 0 if sketch is None else seen_in(images, sketch)
    known = {field.name for field in fields(Cut)}
    cuts = [
        Cut(**{key: value for key, value in each.items() if key in known})
        for each in data.get("cut", ())
        if isinstance(each, dict)
    ]
    # Where splits were given, val alone may have been cut.
    flat = {each.split for each in cuts} == {"val", "test"}
    held = flat and split in ("val", "test") and isinstance(images, LabelledSet)
    if not seen or not held:
        return images, seen, "all are measured"
    if cuts[0].grouped and groups is None:
        return images, seen, "all are measured; --column group=NAME finds those that it held out"
    numbers = groups if cuts[0].grouped else images.content_keys()
    mine = images.subset(cut_off(header.name, images, cuts, numbers)[split])
    # Of some of the images only, training may have taken others.
    if again := seen_in(mine, sketch):
        took = f"the {len(mine)} that its cut takes as {split} are measured, but about {again} of them were used"
        return mine, seen, took
    return mine, seen, f"the {len(mine)} that it held out as {split} are measured"
