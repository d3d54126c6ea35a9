"""``piggyback data``: the registry of data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from piggyback.cli.flags import JsonOption
from piggyback.cli.screen import notes, results, write_json
from piggyback.errors import InputError
from piggyback.lab.datasets import DATASETS, DatasetInfo, dataset, default_roots, locate
from piggyback.lab.datasets.find import fetch

SPLITS = ("train", "val", "test")


def run(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this one, in full.")
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Look here for NAME/ or NAME.tar; by default in $PIGGYBACK_DATA, data and "
            "../shared/data. May be repeated.",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch NAME first, where torchvision can.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the paper's data sets; show where one lies, or how to get it.

    The counts are the published ones. --data of other commands takes a set's name
    where it takes a folder.

    \b
    Examples:
      piggyback data
      piggyback data cubs
      piggyback data flowers --download
      piggyback data --json
    """
    roots = root or default_roots()
    if name is None:
        if download:
            raise InputError("--download: name the set to fetch, such as piggyback data flowers")
        _list(roots, json)
        return
    info = dataset(name)
    if download and locate(name, roots) is None:
        notes().print(f"fetching {name} ...")
        fetch(info, roots)
    if json:
        write_json(as_json(info, roots))
        return
    grid = Table.grid(padding=(0, 2))
    for label, value in facts(info, roots).items():
        grid.add_row(label, Text(value, overflow="fold"))
    results().print(grid)


def as_json(info: DatasetInfo, roots: list[Path]) -> dict[str, Any]:
    """Return what is known about a set, and where it is, as plain JSON."""
    place = locate(info.name, roots)
    return {
        "name": info.name,
        "title": info.title,
        "kind": info.kind,
        "classes": info.classes,
        "counts": dict(info.counts),
        "image_size": info.image_size,
        "crop_pct": info.crop_pct,
        "flip": info.flip,
        "licence": info.licence,
        "how_to_get": info.how_to_get,
        "layout": info.layout,
        "download": info.download is not None,
        "found": None if place is None else str(place),
    }


def facts(info: DatasetInfo, roots: list[Path]) -> dict[str, str]:
    """Return what is known about a set, and where it is, in words."""
    place = locate(info.name, roots)
    looked = ", ".join(str(root) for root in roots)
    cropped = "squeezed into the square" if info.crop_pct == 1 else f"{info.crop_pct:.3g} of a side"
    return {
        "set": f"{info.name} ({info.kind})",
        "title": info.title,
        "classes": f"{info.classes:,}",
        "published": ", ".join(f"{split} {n:,}" for split, n in info.counts.items()),
        "images": f"{info.image_size} pixels, {cropped}, {'' if info.flip else 'not '}mirrored",
        "licence": info.licence,
        "found": f"no: looked in {looked}" if place is None else str(place),
        "get": info.how_to_get,
        "layout": f"{info.places[0]}/ with {info.layout}",
        "download": f"piggyback data {info.name} --download" if info.download else "by hand",
    }


def _list(roots: list[Path], json: bool) -> None:
    if json:
        write_json([as_json(info, roots) for info in DATASETS.values()])
        return
    table = Table("set", "classes", *SPLITS, "found", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:5]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    table.columns[0].min_width = max(map(len, DATASETS))  # to be copied into a command
    table.columns[5].overflow = "fold"
    for info in DATASETS.values():
        place = locate(info.name, roots)
        counts = (str(info.counts.get(split, "")) for split in SPLITS)
        found = Text("missing", style="dim") if place is None else Text(str(place))
        table.add_row(info.name, str(info.classes), *counts, found)
    screen = results()
    screen.print(table)
    screen.print("piggyback data NAME tells how to get one and how to lay it out.")
