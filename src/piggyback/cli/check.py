"""``piggyback check``: what is in a data set, before training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piggyback.cli.options import JsonOption
from piggyback.cli.screen import results, table, write_json
from piggyback.errors import DataError
from piggyback.names import plain
from piggyback.taskfile.disk import check_output

if TYPE_CHECKING:
    from PIL.Image import Image

    from piggyback.train.data.survey import Survey

LISTED = 10
"""Files that are named of each sort; ``--json`` and ``--out`` name all."""
TILE, ACROSS, MOST_ROWS = 96, 8, 60
"""Of the contact sheet: pixels a side, pictures of a class, classes."""


def run(
    data: Annotated[
        Path, typer.Argument(metavar="DIR", help="Images: DIR/SPLIT/CLASS/FILE, or DIR/CLASS/FILE.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for check.json and a contact sheet, classes.png."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Look at every image of a data set: counts, bad files, copies, sizes.

    Every image is decoded as training would. Copies are found byte for byte, and
    by how they look, within a split, across splits and under two labels. The exit
    code is 1 where training would refuse the data as it is.

    \b
    Examples:
      piggyback check photos/signs
      piggyback check photos/signs --out signs-check
      piggyback check photos/signs --json
    """
    from piggyback.train.data.segmentation import is_segmentation_folder
    from piggyback.train.data.survey import survey

    if out is not None:
        check_output(out, "--out", folder=True)
    if is_segmentation_folder(data):
        raise DataError(f"{str(data)!r} holds label maps: check is for class folders")
    found = survey(data)
    values = found.to_json()
    if out is not None:
        _write(out, found, values)
    if json:
        write_json(values)
    else:
        _show(found, values)
        if out is not None:
            results().print(f"wrote {out / 'check.json'}, {out / 'classes.png'}", soft_wrap=True)
    if found.unreadable or not all(all(row.values()) for row in found.counts.values()):
        raise typer.Exit(1)


def _show(found: Survey, values: Mapping[str, Any]) -> None:
    screen, counts = results(), found.counts
    splits = list(next(iter(counts.values())))
    rows = table("+class", *(f">{split}" for split in splits))
    for label, row in counts.items():
        rows.add_row(label, *map(str, row.values()))
    totals = [str(sum(row[split] for row in counts.values())) for split in splits]
    rows.add_section()
    rows.add_row(f"{len(counts)} classes", *totals)
    screen.print(rows)
    if sides := values["shorter_side"]:
        screen.print(
            f"shorter side {sides[0]} to {sides[2]} pixels, median {sides[1]}; {values['grey']} images are grey"
        )
    for what, count in found.left_out.items():
        screen.print(f"passed over: {count} {what}")
    for line in values["warnings"]:
        screen.print(f"warning: {line}", soft_wrap=True)
    for one in found.unreadable[:LISTED]:
        screen.print(f"  cannot be read: {one.problem}", soft_wrap=True)
    for copies in found.copies[:LISTED]:
        same = "the same bytes" if copies.exact else "looks the same"
        screen.print(f"  {copies.what}, {same}: {', '.join(copies.files)}", soft_wrap=True)
    if not values["warnings"]:
        screen.print("nothing to complain of")


def _write(folder: Path, found: Survey, values: Mapping[str, Any]) -> None:
    """Write check.json and the contact sheet."""
    import io
    import json

    from piggyback.taskfile.disk import write_file

    drawn = io.BytesIO()
    _sheet(found).save(drawn, format="PNG")
    write_file(folder / "check.json", json.dumps(values, indent=1))
    write_file(folder / "classes.png", drawn.getvalue())


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
        files = [one.file for one in found.samples if one.label == label and not one.problem]
        draw.text((3, row * height), f"{plain(label)} ({len(files)})", fill="black", font=font)
        for column, file in enumerate(files[:: max(1, -(-len(files) // ACROSS))]):
            pixels = load_fitted(file, Preprocessing(TILE)).permute(1, 2, 0).numpy()
            sheet.paste(Image.fromarray(pixels), (column * TILE, row * height + name_height))
    return sheet
