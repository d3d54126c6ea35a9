"""``piggyback check``: what is in a data set, before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piggyback.cli.loading import called, check_folder, is_data_set, load_set, refuse_table_options
from piggyback.cli.messages import in_options
from piggyback.cli.options import (
    ColumnOption,
    JsonOption,
    KindOption,
    SeparatorOption,
    columns_of,
)
from piggyback.cli.screen import results, table, write_json
from piggyback.errors import DataError
from piggyback.names import plain

if TYPE_CHECKING:
    from PIL.Image import Image

    from piggyback.train.data.sets import ImageData
    from piggyback.train.data.survey import Survey

LISTED = 10
"""Files that are named of each sort; ``--json`` and ``--out`` name all."""
TILE, ACROSS, MOST_ROWS = 96, 8, 60
"""Of the contact sheet: pixels a side, pictures of a class, classes."""
_COUNTED = {
    "classification": "classes", "multilabel": "labels", "regression": "numbers", "tokens": "types",
}  # fmt: skip


def run(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Images: DIR/SPLIT/CLASS/FILE, or DIR/CLASS/FILE. A table: FILE.csv, .tsv, .jsonl or .parquet, or "
            "hf:NAME. Or a data set's name, or torchvision:CLASS:ROOT.",
        ),
    ],
    column: ColumnOption = None,
    kind: KindOption = "classification",
    separator: SeparatorOption = ",",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for check.json and, for images, a contact sheet, classes.png.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check a data set: counts, unreadable files, duplicates, sizes.

    Every image is decoded as in training. Duplicates are found byte for byte, and
    pictures also by how they look, within a split, across splits and under two
    labels. The exit code is 1 if training would refuse the data as they are.

    \b
    Examples:
      piggyback check photos/signs
      piggyback check photos/signs --out signs-check
      piggyback check photos/signs --json
      piggyback check photos.csv --kind multilabel --column label=tags
    """
    if out is not None:
        check_folder(out, "--out", [data])
    columns = columns_of(column)
    found = _survey(data, columns, kind, separator)
    values = found.to_json()
    written = [] if out is None else _write(out, found, values)
    if json:
        write_json(values)
    else:
        _show(found, values)
        if written:
            results().print(f"wrote {', '.join(map(str, written))}", soft_wrap=True)
    if found.refused or found.unreadable:
        raise typer.Exit(1)


def _survey(data: Path, columns: Mapping[str, str], kind: str, separator: str) -> Survey:
    """What is in the data, and what training would say of them."""
    from piggyback.train.data.columns import is_table
    from piggyback.train.data.folder import load_folder
    from piggyback.train.data.remarks import Surveyed
    from piggyback.train.data.segmentation import is_segmentation_folder
    from piggyback.train.data.survey import survey, survey_splits
    from piggyback.train.data.table import Table

    name = called(data)
    taken: Callable[[], ImageData]
    # Training takes them in another way: it cuts splits that are missing, and takes no image that cannot be read.
    if is_table(data):
        table = Table(data, columns, kind, separator, check_images=False)
        found, taken = survey_splits(name, table.splits), partial(table.data, name)
    else:
        refuse_table_options(columns, kind)
        if is_data_set(data, skip_bad=False):
            whole = load_set(str(data))
            found, taken = survey_splits(name, whole.splits()), lambda: whole
        elif is_segmentation_folder(data):
            raise DataError(
                f"{str(data)!r} holds label maps: check is for images or texts with labels"
            )
        else:
            found = survey(data)
            taken = partial(load_folder, data, found.name)
    try:
        told = taken().notes
    except DataError as error:
        return replace(found, refused=str(error))
    own = ("", *found.splits)
    left = [note for note in told if not (isinstance(note, Surveyed) and note.lacking in own)]
    return replace(found, notes=left)


def _show(found: Survey, values: Mapping[str, Any]) -> None:
    screen, counts = results(), found.counts
    if found.numbers:
        rows = table("+number", "split", ">smallest", ">median", ">largest")
        for name, spreads in found.numbers.items():
            for split, spread in spreads.items():
                rows.add_row(name, split, *(f"{number:g}" for number in spread))
        screen.print(rows)
    if counts:
        rows = table("+class", *(f">{split}" for split in found.splits))
        for label, row in counts.items():
            rows.add_row(label, *map(str, row.values()))
        screen.print(rows)
    each = Counter(one.split for one in found.samples)
    parts = ", ".join(f"{count} in {split}" for split, count in each.items())
    screen.print(f"{_COUNTED[found.kind]}: {len(counts or found.numbers)}; {found.what}: {parts}")
    if sides := values["shorter_side"]:
        screen.print(
            f"shorter side {sides[0]} to {sides[2]} pixels, median {sides[1]}; {values['grey']} images are grey"
        )
    if words := values["words"]:
        screen.print(f"{words[0]} to {words[2]} words, median {words[1]}")
    passed = (f"passed over: {count} {what}" for what, count in found.left_out.items())
    for line in dict.fromkeys((*passed, *found.notes)):
        screen.print(in_options(line), soft_wrap=True)
    for line in values["warnings"]:
        screen.print(f"warning: {in_options(line)}", soft_wrap=True)
    for one in found.unreadable[:LISTED]:
        where = f"{one.name}: " * (one.name not in one.problem)
        screen.print(f"  cannot be read: {where}{one.problem}", soft_wrap=True)
    for copies in found.copies[:LISTED]:
        same = "the same bytes" if copies.exact else "looks the same"
        named = copies.files if found.what == "images" else [shorten(copies.files[0], 80)]
        screen.print(f"  {copies.what}, {same}: {', '.join(named)}", soft_wrap=True)
    if not values["warnings"] and not found.notes:
        screen.print("nothing to complain of")


def _write(folder: Path, found: Survey, values: Mapping[str, Any]) -> list[Path]:
    """Write check.json and, of images in classes or with labels, the contact sheet; return what was written."""
    import io
    import json

    from piggyback.taskfile.disk import write_file

    written = [folder / "check.json"]
    write_file(written[0], json.dumps(values, indent=1))
    if found.what == "images" and found.counts:
        drawn = io.BytesIO()
        _sheet(found).save(drawn, format="PNG")
        written.append(folder / "classes.png")
        write_file(written[1], drawn.getvalue())
    return written


def _sheet(found: Survey) -> Image:
    """A row for each class: its name, and pictures evenly spaced over its first split's."""
    from PIL import Image, ImageDraw, ImageFont

    from piggyback.images.decode import load_fitted
    from piggyback.images.preprocessing import Preprocessing

    labels, name_height = list(found.counts)[:MOST_ROWS], 18
    height = TILE + name_height
    sheet = Image.new("RGB", (ACROSS * TILE, max(len(labels), 1) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, label in enumerate(labels):
        files = [one.source for one in found.samples if label in one.labels and not one.problem]
        draw.text((3, row * height), f"{plain(label)} ({len(files)})", fill="black", font=font)
        for column, file in enumerate(files[:: max(1, -(-len(files) // ACROSS))]):
            pixels = load_fitted(file, Preprocessing(TILE)).permute(1, 2, 0).numpy()
            sheet.paste(Image.fromarray(pixels), (column * TILE, row * height + name_height))
    return sheet
