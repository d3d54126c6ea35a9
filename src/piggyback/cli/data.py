"""``piggyback data``: the registry of data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from piggyback.cli.options import JsonOption
from piggyback.cli.screen import grid, notes, results, table, write_json
from piggyback.errors import InputError
from piggyback.names import plain

if TYPE_CHECKING:
    from piggyback.lab.datasets import DatasetInfo

SPLITS = ("train", "val", "test")


def run(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this one, in full.")
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
        bool, typer.Option("--download", help="Fetch NAME first, if torchvision can.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the paper's data sets; show where each is stored, or how to get it.

    The counts are the published ones. The --data option of other commands takes a
    set's name in place of a folder.

    \b
    Examples:
      piggyback data
      piggyback data cubs
      piggyback data flowers --download
      piggyback data --json
    """
    if name is None and download:
        raise InputError("--download: name the set to fetch, such as piggyback data flowers")

    from piggyback.lab.datasets import DATASETS, dataset, default_roots, locate
    from piggyback.lab.datasets.find import fetch

    roots = root or default_roots()
    if name is None:
        _list([(info, locate(info.name, roots)) for info in DATASETS.values()], json)
        return
    info = dataset(name)
    if download and locate(name, roots) is None:
        if info.download is not None:
            notes().print(f"fetching {name} ...")
        fetch(info, roots)
    place = locate(name, roots)
    if json:
        write_json(_as_json(info, place))
        return
    results().print(grid(_facts(info, place, roots)))


def _as_json(info: DatasetInfo, place: Path | None) -> dict[str, Any]:
    plain = ("name", "title", "kind", "classes", "counts", "image_size", "crop_pct", "flip")
    texts = ("licence", "how_to_get", "layout")
    return {
        **{name: getattr(info, name) for name in (*plain, *texts)},
        "download": info.download is not None,
        "found": None if place is None else str(place),
    }


def _facts(info: DatasetInfo, place: Path | None, roots: list[Path]) -> dict[str, str]:
    """What is known about a set, and where it is, in words."""
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


def _list(found: list[tuple[DatasetInfo, Path | None]], json: bool) -> None:
    if json:
        write_json([_as_json(info, place) for info, place in found])
        return
    by_set = table("set", ">classes", *(f">{split}" for split in SPLITS), "+found")
    by_set.columns[0].no_wrap = True
    by_set.columns[0].min_width = max(len(info.name) for info, _ in found)  # to be copied
    for info, place in found:
        counts = (str(info.counts.get(split, "")) for split in SPLITS)
        where = Text("missing", style="dim") if place is None else Text(plain(str(place)))
        by_set.add_row(info.name, str(info.classes), *counts, where)
    screen = results()
    screen.print(by_set)
    screen.print("piggyback data NAME tells how to get one and how to lay it out.")
