"""Backbones, task files and image folders, as several commands load them.

What is heavy is imported by the function that needs it: `serve` and `predict` read a task file's header, and refuse
what is wrong with it, before torch is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from piggyback.cli.messages import in_options
from piggyback.cli.screen import notes
from piggyback.errors import BackboneError, DataError, InputError, near_misses
from piggyback.taskfile.disk import check_output
from piggyback.taskfile.header import TaskHeader, read_header
from piggyback.taskfile.task import OWN
from piggyback.texts.preprocessing import TextPreprocessing
from piggyback.zoo import runs_code

if TYPE_CHECKING:
    from piggyback.model.multitask import MultiTaskModel
    from piggyback.network.backbone import Backbone
    from piggyback.train.data.sets import ImageData


SETS = ("hf", "torchvision")
"""What stands before a set's name, and a colon, where it is a library that knows the set."""


# -- task files and their backbone -----------------------------------------------------------------


def spec_of(header: TaskHeader, spec: str | None) -> str:
    """Return ``spec``, or where there is none, the backbone that a task file names.

    Raises BackboneError where the file names none, or names code that would be run.
    """
    source = header.info.backbone.source
    if spec is None and runs_code(source):
        raise BackboneError(
            f"task {header.name!r} wants backbone {source!r}, which runs that file's code: "
            f"if you trust it, give --backbone {source}"
        )
    if spec is None and not source:
        raise BackboneError(f"task {header.name!r} names no backbone: give --backbone")
    return spec or source


def backbone_of(
    header: TaskHeader, spec: str | None, checkpoint: Path | None, head: str | None
) -> Backbone:
    """Return the backbone that a task file names, or the one given as ``spec``; errors as ``spec_of``."""
    wanted = spec_of(header, spec)
    size = getattr(header.info.preprocessing, "image_size", None)  # texts have none

    from piggyback.zoo.load import load_backbone

    return load_backbone(wanted, checkpoint=checkpoint, image_size=size, head=head)


def read_answering(file: Path) -> TaskHeader:
    """Return a task file's header; InputError for a task whose outputs are not classes, labels or numbers."""
    header = read_header(file)
    if header.info.kind == OWN:
        raise InputError(
            f"task {header.name!r} keeps the backbone's own head, as language models do: run it with MultiTaskModel"
        )
    return header


def load_tasks(
    files: Sequence[Path], spec: str | None, checkpoint: Path | None, head: str | None
) -> MultiTaskModel:
    """Return a model that holds the tasks of all ``files``, in their order; they must share a backbone."""
    headers = [read_header(file) for file in files]
    held: dict[str, Path] = {}
    for header, file in zip(headers, files, strict=True):
        if (other := held.setdefault(header.name, file)) is not file:
            raise InputError(
                f"task files {str(other)!r} and {str(file)!r} both hold a task {header.name!r}: expected each name once"
            )
    backbone = backbone_of(headers[0], spec, checkpoint, head)

    from accelerate import PartialState

    from piggyback.model.multitask import MultiTaskModel

    model = MultiTaskModel(backbone)
    for file in files:
        model.load_task(file)
    return model.eval().to(PartialState().device)


# -- images to train on ----------------------------------------------------------------------------


def called(data: Path) -> str:
    """Return the name of a folder, of a table, of what a pattern is in, or of a set such as hf:NAME.

    >>> called(Path("photos/signs")), called(Path("signs/*.tar")), called(Path("hf:nyu-mll/glue:sst2"))
    ('signs', 'signs', 'glue')
    """
    source, _, rest = str(data).partition(":")
    if source in SETS:
        return Path(rest.partition(":")[0]).name
    place = data.resolve()
    if place.suffix == ".tar" and not place.exists():
        return place.parent.name
    return place.stem if place.is_file() else place.name


def named(data: Path) -> tuple[str | None, Path]:
    """Return the name and the source in NAME=SOURCE; None and ``data`` where that is there, or its folder is.

    >>> named(Path("signs=photos/signs"))[0], named(Path("photos/signs"))[0]
    ('signs', None)
    """
    name, equals, source = str(data).partition("=")
    there = data.exists() or (data.parent != Path() and data.parent.exists())
    return (name, Path(source)) if equals and source and not there else (None, data)


def check_folder(out: Path, option: str, sources: Iterable[Path]) -> None:
    """Raise InputError where ``out`` cannot be written, or lies where its pictures would be taken for a class's."""
    check_output(out, option, folder=True)

    from piggyback.train.data.folder import split_folders

    places = [source for source in sources if source.is_dir()]
    read = [part for place in places for part in split_folders(place).values() or [place]]
    if any(out.resolve().is_relative_to(part.resolve()) for part in read):
        raise InputError(
            f"{option} {str(out)!r} lies among the images, where its pictures would count as some: choose another"
        )


def load_images(
    root: Path,
    name: str,
    skip_bad: bool,
    columns: Mapping[str, str] | None = None,
    kind: str = "classification",
    separator: str = ",",
) -> ImageData:
    """Return the images of a folder or of a data set's name, or a table's samples; show what was left out."""
    data = _read_images(root, name, skip_bad, columns, kind, separator)
    for line in (*(f"left out: {problem}" for problem in data.skipped), *data.notes):
        notes().print(f"{name}: {in_options(line)}", soft_wrap=True)
    return data


def _read_images(
    root: Path,
    name: str,
    skip_bad: bool,
    columns: Mapping[str, str] | None,
    kind: str,
    separator: str,
) -> ImageData:
    from piggyback.train.data.columns import is_table
    from piggyback.train.data.table import load_table

    if is_table(root):
        refuse_skip_bad(root, skip_bad)
        return load_table(root, name, columns, kind, separator=separator)
    refuse_table_options(columns, kind)
    if is_data_set(root, skip_bad):
        return replace(load_set(str(root)), name=name)

    from piggyback.train.data.folder import load_folder
    from piggyback.train.data.segmentation import is_segmentation_folder, load_camvid_layout

    if is_segmentation_folder(root):
        refuse_skip_bad(root, skip_bad)
        return load_camvid_layout(root, name)
    return load_folder(root, name, skip_bad=skip_bad)


def load_sized(
    spec: str,
    data: Iterable[ImageData],
    image_size: int | None,
    checkpoint: Path | None,
    head: str | None,
) -> Backbone:
    """Return the backbone to train on ``data`` with; without ``image_size``, one that takes the images' own.

    Some networks take only the size they were built for: these are built again, where they can be.
    """
    from piggyback.train.data.size import held_side, native_side, side_for
    from piggyback.train.data.text import TextSet
    from piggyback.zoo.load import load_backbone, refusal

    def takes(backbone: Backbone, sides: Iterable[int]) -> bool:
        return all(refusal(backbone.module, side) is None for side in sides)

    backbone = load_backbone(spec, checkpoint=checkpoint, head=head, image_size=image_size)
    if image_size is not None or isinstance(backbone.preprocessing, TextPreprocessing):
        return backbone
    trains = [images.train for images in data if not isinstance(images.train, TextSet)]
    sides = {side_for(held_side(train), native_side(backbone)) for train in trains}
    if not sides:
        return backbone
    if takes(backbone, sides - {native_side(backbone)}):
        return backbone
    with suppress(BackboneError):
        built = load_backbone(spec, checkpoint=checkpoint, head=head, image_size=min(sides))
        if takes(built, sides):
            # Each task's size is chosen in training, between its images' and the network's own.
            return replace(built, preprocessing=backbone.preprocessing, size_given=False)
    return backbone


def is_data_set(root: Path, skip_bad: bool) -> bool:
    """Return whether ``root`` is a data set's name and not a folder; a set is read whole or not at all.

    Raises DataError for what is neither.
    """
    if root.is_dir():
        if any(root.glob("*.parquet")) and not any(inside.is_dir() for inside in root.iterdir()):
            raise DataError(
                f"folder {str(root)!r} holds Parquet files, not images: name one of them, or all as hf:{root}"
            )
        return False
    if root.is_file():
        raise DataError(
            f"{str(root)!r} is a file: expected a folder of images, a table (.csv, .tsv, .jsonl, .parquet), or a .tar "
            "without compression"
        )

    from piggyback.lab.datasets import DATASETS
    from piggyback.train.data.dataset import TORCHVISION

    if str(root) not in DATASETS and not str(root).startswith(TORCHVISION):
        raise DataError(
            f"image folder {str(root)!r}: no such directory, and no data set of that name"
            f"{near_misses(str(root), DATASETS)}; `piggyback data` lists them"
        )
    if skip_bad:
        raise DataError(
            f"data set {str(root)!r}: --skip-bad is for folders; a published set is read whole"
        )
    return True


def load_set(name: str) -> ImageData:
    """Return the data set that ``is_data_set`` knows by name."""
    from piggyback.lab.datasets import load
    from piggyback.train.data.dataset import TORCHVISION, torchvision_data

    return torchvision_data(name) if name.startswith(TORCHVISION) else load(name)


def refuse_table_options(columns: Mapping[str, str] | None, kind: str = "classification") -> None:
    """Raise DataError where columns or a kind are named of what is no table."""
    if columns:
        raise DataError("--column: it is for tables, such as reviews.csv; leave it out")
    if kind != "classification":
        raise DataError(f"--kind {kind}: it is for tables, such as photos.csv; leave it out")


def refuse_skip_bad(root: Path, skip_bad: bool) -> None:
    """Raise DataError if asked to leave images out of what is not a folder of class folders."""
    if skip_bad:
        raise DataError(
            f"{str(root)!r}: --skip-bad is for class folders; remove the image and its label instead"
        )
