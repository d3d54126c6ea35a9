"""Tars in WebDataset's layout, read as a table: a row for each key, its image where it lies in the tar.

key.jpg                  the image, or another of Pillow's formats
key.cls                  its class, a name or a number
key.json                 or fields, which are columns: "label", and others for --column

``train-0000.tar``, or ``train/0000.tar``, is of the split train. Files of other endings are passed over.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from piggyback.errors import DataError, first_line
from piggyback.images.find import SUFFIXES, list_folders
from piggyback.strict_json import strict_json
from piggyback.train.data.folder import split_of

TAR = ".tar"
_LABEL, _FIELDS = "cls", "json"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
"""What files begin with that gzip, bzip2, xz and zstd wrote."""
_MOST_TEXT = 1 << 20
"""Bytes of a label or of fields; what is larger is none."""


class Place(NamedTuple):
    """Where a file lies in a tar: its first byte there, and its size."""

    shard: int
    start: int
    size: int


class TarImages(Sequence[bytes]):
    """Encoded images, each read from its tar when it is asked for."""

    def __init__(self, shards: Sequence[Path], places: Sequence[Place]) -> None:
        self.shards, self.places = shards, np.array(places, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        shard, start, size = self.places[index].tolist()
        with self.shards[shard].open("rb") as file:
            file.seek(start)
            return file.read(size)


class TarColumns(dict[str, Sequence[Any]]):
    """The columns image, label, split where shards have one, and those of JSON files; ``where`` names a row."""

    def __init__(
        self,
        shards: Sequence[Path],
        rows: Mapping[tuple[str, str], dict[str, Any]],
        left_out: Mapping[str, int],
    ) -> None:
        self.keys_of, self.shards = [key for _, key in rows], shards
        self.shard_of = [row["image"].shard for row in rows.values()]
        names = dict.fromkeys(name for row in rows.values() for name in row)
        super().__init__({name: [row.get(name) for row in rows.values()] for name in names})
        self["image"] = TarImages(shards, self["image"])
        self.notes = tuple([f"passed over: {count} {what}" for what, count in left_out.items()])

    def where(self, at: int) -> str:
        """Return the shard and the key of row ``at``, from 1."""
        return f"shard {str(self.shards[self.shard_of[at - 1]])!r}, key {self.keys_of[at - 1]!r}"


def shards_of(path: Path) -> list[Path]:
    """Return the tars that a path, a pattern, or a folder of tars or of splits of tars names, sorted; none for another.

    >>> shards_of(Path("photos.csv"))
    []
    """
    if path.is_dir():
        inner = list_folders(path)  # of classes, or of splits that hold some, it is one of images
        if any(split_of(folder.name) is None or list_folders(folder) for folder in inner):
            return []
        return sorted(tar for folder in inner or [path] for tar in folder.glob(f"*{TAR}"))
    if path.suffix.lower() != TAR:
        return []
    pattern = str(path.relative_to(path.anchor))
    return [path] if path.exists() else sorted(Path(path.anchor).glob(pattern))


def tar_columns(path: Path) -> TarColumns:
    """Return what ``shards_of`` a path hold; DataError, with the shard and the key, for what is wrong with them."""
    shards = shards_of(path)
    if not shards:
        raise DataError(f"shards {str(path)!r}: no such file: expected tars in WebDataset's layout")
    splits = [_split(shard) for shard in shards]
    if any(splits) and not all(splits):
        odd = shards[splits.index(None)]
        raise DataError(
            f"shard {str(odd)!r}: no split in its name: expected one, as others have it"
        )
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    left_out = Counter[str]()
    for number, (shard, split) in enumerate(zip(shards, splits, strict=True)):
        for key, row in _samples(number, shard, left_out):
            if split:
                row["split"] = split
            if (first := rows.setdefault((split or "", key), row)) is not row:
                raise DataError(
                    f"shard {str(shard)!r}, key {key!r}: it is also in {str(shards[first['image'].shard])!r}: "
                    "expected each key once"
                )
    if not rows:
        raise DataError(
            f"shards {str(path)!r} hold no samples: expected images with labels; a key ends at the first dot"
        )
    return TarColumns(shards, rows, left_out)


def _split(shard: Path) -> str | None:
    """The split that a word in a tar's name, or else its folder's name, stands for."""
    words = re.findall(r"[a-z]+", shard.stem.lower())
    found = {split for word in words if (split := split_of(word))}
    return found.pop() if len(found) == 1 else split_of(shard.parent.name)


def _samples(
    number: int, shard: Path, left_out: Counter[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key of a tar with its cells; ``left_out`` counts files of other endings."""
    parts: dict[str, dict[str, Any]] = {}
    with shard.open("rb") as file:
        for name, start, size in _files(shard):
            folder, _, rest = name.rpartition("/")
            stem, _, ending = rest.partition(".")
            key, ending = f"{folder}/{stem}" if folder else stem, ending.lower()
            row, where = parts.setdefault(key, {}), f"shard {str(shard)!r}, key {key!r}"
            kind = "image" if f".{ending}" in SUFFIXES else ending
            if kind not in ("image", _LABEL, _FIELDS):
                if stem:  # hidden files have none
                    dots = ", with a dot before its ending" * ("." in ending)
                    left_out[f"'.{ending.rpartition('.')[2]}' file{dots}"] += 1
                continue
            if kind in row:
                what = "two images" if kind == "image" else f"two files {kind}"
                raise DataError(f"{where}: {what}: expected one; a key ends at the first dot")
            if kind == "image":
                row[kind] = Place(number, start, size)
                continue
            file.seek(start)
            row[kind] = _text(file.read(min(size, _MOST_TEXT + 1)), kind, where)
    for key, row in parts.items():
        fields, label = row.pop(_FIELDS, {}), row.pop(_LABEL, None)
        where = f"shard {str(shard)!r}, key {key!r}"
        if not row and not fields and label is None:
            continue  # it is of other endings only
        if not row:
            raise DataError(f"{where}: a label without an image: expected key.jpg or the like")
        if label is None and not fields:
            raise DataError(f"{where}: an image without a label: expected key.cls or key.json")
        yield key, {**fields, **({} if label is None else {"label": label}), **row}


def _files(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and size of each file in a tar, which is whole."""
    end, what = 0, f"shard {str(shard)!r}"
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise DataError(
                        f"{what}: {member.name!r} is a link or the like: expected files"
                    )
                yield member.name, member.offset_data, member.size
        with shard.open("rb") as file:
            # Where a header is damaged, tarfile takes it for the end; after two blocks of zeros all is zero.
            file.seek(end)
            rest = file.read(1 << 20)
    except (OSError, tarfile.TarError) as error:
        found = first_line(error)
        with suppress(OSError), shard.open("rb") as file:
            if file.read(6).startswith(_COMPRESSED):
                found = "it is compressed, and has to be unpacked once"
        raise DataError(f"{what} cannot be read: {found}: expected a whole tar") from error
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        found = (
            "ends without a tar's last block"
            if not rest.strip(b"\0")
            else f"is damaged at byte {end}"
        )
        raise DataError(f"{what} {found}: expected a whole tar; write or fetch it again")


def _text(data: bytes, kind: str, where: str) -> Any:
    """A label's text, or the fields of a JSON object."""
    try:
        text = data.decode("utf-8-sig").strip()
        found = strict_json(text) if kind == _FIELDS else text
    except ValueError as error:
        raise DataError(f"{where}: .{kind} cannot be read: {first_line(error)}") from error
    if len(data) > _MOST_TEXT or (kind == _FIELDS and not isinstance(found, dict)):
        wanted = "an object" if kind == _FIELDS else "the name of a class"
        raise DataError(f"{where}: .{kind} {text[:40]!r}: expected {wanted}")
    return found
