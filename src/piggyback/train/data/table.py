"""Tables of images or texts with their labels, as sets of samples.

    classification   a label column with the name of a class
    multilabel       a label column with several names, "a,b" or a JSON list, or a column of 0 and 1 for each label
    regression       a column for each number; "height (m)" is a height in metres
    tokens           of texts: words with spaces between them, and as many tags, O, B-TYPE or I-TYPE; or two JSON lists

Everything that is wrong with a table is found here, before training starts, with its row.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piggyback.errors import DataError, near_misses
from piggyback.images.decode import content_key, in_threads
from piggyback.images.paths import PathList
from piggyback.images.pictures import Pictures
from piggyback.texts.words import spaced_words
from piggyback.train.data.arrow import ArrowColumns, Encoded
from piggyback.train.data.categorical import Categorical, categorical, read_each
from piggyback.train.data.columns import (
    Columns,
    cells_of,
    checked_texts,
    column_of,
    file_of,
    listed,
    read_columns,
    row_of,
)
from piggyback.train.data.folder import problem_of, split_of
from piggyback.train.data.remarks import Surveyed
from piggyback.train.data.sets import ImageData, ImageSet, cut
from piggyback.train.data.shards import TarColumns, TarImages
from piggyback.train.data.tagged import TaggedSet
from piggyback.train.data.text import TextSet

ROLES = ("image", "text", "label", "split", "group")
"""What a column may be for; each but "group" is by default the column of that name."""
_KINDS = ("classification", "multilabel", "regression", "tokens")
_TAG = re.compile(r"O|[BI]-\S+")
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_MULTI_HOT = "a list of 0 and 1: expected names, or a column of 0 and 1 for each label"
_UNIT = re.compile(r"(.*\S)\s*[(\[]([^()\[\]]+)[)\]]")
"""Of a column such as "height (m)": name and unit."""
_NO_COMMA = re.compile(r"['\"]\s+['\"]")
_FRACTION = re.compile(r"[+-]?\d*\.?\d+(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_SPLITTING = re.compile("split|set|fold|part|phase|usage")
_IN_SPLIT = re.compile("(is|in)_?(train|val|valid|validation|test|dev)(ing|_?set)?")
_MOST_LOST = 1e-3
"""Part of a number's standard deviation that rounding to float32 may take before it is said."""
_LARGEST = float(np.finfo(np.float32).max)


def load_table(
    path: str | Path,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    kind: str = "classification",
    *,
    separator: str = ",",
    seed: int = 0,
) -> ImageData:
    """Return a table's images or texts with their labels, checked; splits that are missing are cut from train.

    ``columns`` says which columns hold what, by ``ROLES``; "label" may name several, with commas. Images are files,
    relative to the table or absolute. ``kind`` is that of the task, ``separator`` stands between the labels in a cell.
    Rows of one "group" stay in one split. A table without a split is train. Images in several rows are counted in
    ``notes``.

    Raises DataError with the row, the value, and what was expected.
    """
    path = Path(path)
    return Table(path, columns, kind, separator).data(name or path.stem, seed)


class Table:
    """A table's columns that are wanted of it, read once.

    Without ``check_images``, images that cannot be read are an error of ``data`` only.
    """

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, str] | None = None,
        kind: str = "classification",
        separator: str = ",",
        check_images: bool = True,
    ) -> None:
        columns = columns or {}
        self.path, self.kind, self.separator = path, kind, separator
        self.check_images, self.unreadable = check_images, ""
        if kind not in _KINDS:
            raise DataError(
                f"kind {kind!r}: expected one of {', '.join(_KINDS)}{near_misses(kind, _KINDS)}"
            )
        held = read_columns(path)
        self.where = held.where if isinstance(held, TarColumns) else partial(row_of, path)
        if unknown := [role for role in columns if role not in ROLES]:
            raise DataError(
                f"column {unknown[0]}={columns[unknown[0]]}: expected one of {', '.join(ROLES)}"
                f"{near_misses(unknown[0], ROLES)}"
            )
        if {"image", "text"} <= columns.keys():
            raise DataError(f"table {str(path)!r}: columns for image and for text: expected one")
        known = "image" in columns or ("text" not in columns and "image" in held)
        self.role = "image" if known else "text"
        if not known and "text" not in {*columns, *held}:
            raise DataError(
                f"table {str(path)!r} has no column 'image' and no column 'text': it has {listed(held)}; name one in "
                "columns= (image=NAME or text=NAME)"
            )
        sample = column_of(path, held, self.role, columns.get(self.role))
        label = columns.get("label", "label")
        wanted = [label] if label in held else [part.strip() for part in label.split(",")]
        if twice := [name for name, n in Counter(wanted).items() if n > 1]:
            raise DataError(
                f"table {str(path)!r}: column {twice[0]!r} twice for label: expected each once"
            )
        self.labels = {name: held[column_of(path, held, "label", name)] for name in wanted}
        if len(self.labels) > 1 and kind in ("classification", "tokens"):
            raise DataError(
                f"table {str(path)!r}: {len(self.labels)} columns of labels: expected one for classes or tags; "
                "several are for another kind= (multilabel or regression)"
            )
        if known and kind == "tokens":
            raise DataError(
                f"table {str(path)!r} is one of images: expected texts for kind 'tokens'; name their column in "
                "columns= (text, then its name)"
            )
        named = {"split": "split", **columns} if "split" in held else columns
        split, self.group = (
            column_of(path, held, role, named[role]) if role in named else None
            for role in ("split", "group")
        )
        cells = cells_of(path, held, self.role, sample)
        self.notes: tuple[str, ...] = getattr(held, "notes", ())
        if split is None:
            used = {sample, self.group, *self.labels}
            self.notes += _other_splits({name: held for name in held if name not in used})
        self.samples: Any = self._images(cells) if known else self._texts(cells)
        self.parts = (
            Categorical(["train"], np.zeros(len(cells), np.int64))
            if split is None
            else read_each(held[split], self._split).merged()
        )
        self.groups = None if self.group is None else self._groups(held[self.group])

    def data(self, name: str, seed: int = 0) -> ImageData:
        """Return a training's three splits; those that are missing are cut from train. Errors as ``load_table``."""
        if self.unreadable:
            raise DataError(self.unreadable)
        parts = self.splits
        if "train" not in parts:
            raise DataError(
                f"table {str(self.path)!r} has splits {', '.join(parts)}: expected one called train"
            )
        return cut(
            name,
            parts["train"],
            parts.get("val"),
            parts.get("test"),
            seed=seed,
            notes=self.notes,
            groups=self.groups_of("train"),
        )

    @cached_property
    def splits(self) -> dict[str, ImageSet | TextSet]:
        """The samples of each split, everything checked."""
        names, labels, units = getattr(self, f"_{self.kind}")()
        whole: ImageSet | TextSet
        if self.role == "image":
            self.notes += self._repeated(labels)
            files: Any = self.samples
            if isinstance(files, Categorical):
                places = PathList.of(self.path.parent, files.values)
                files = places.at(torch.from_numpy(files.codes))
            whole = ImageSet(names, labels, files=files, units=units)
        else:
            made = TaggedSet if self.kind == "tokens" else TextSet
            whole = made(names, labels, tuple(self.samples), units=units)
        found = dict.fromkeys(self.parts.values, whole)
        if len(found) > 1:
            for code, part in enumerate(found):
                rows = np.flatnonzero(self.parts.codes == code)
                found[part] = whole.subset(torch.from_numpy(rows))
        return found

    def _split(self, at: int, cell: Any) -> str:
        found = split_of(str(cell))
        if found is None:
            raise self._fail(at, f"split {cell!r:.40}: expected train, val or test")
        return found

    def groups_of(self, part: str) -> NDArray[np.uint64] | None:
        """A number for each sample of a split, the same within a group; None without groups."""
        if self.groups is None:
            return None
        mine = [
            group for group, other in zip(self.groups, self.parts, strict=True) if other == part
        ]
        digests = (hashlib.sha256(group.encode()).digest() for group in mine)
        return np.array([int.from_bytes(each[:8], "little") for each in digests], np.uint64)

    def _fail(self, at: int, what: str) -> DataError:
        return DataError(f"{self.where(at)}: {what}")

    def _texts(self, cells: Sequence[Any]) -> list[str]:
        return checked_texts(
            self.path, [_joined(cell) for cell in cells] if self.kind == "tokens" else cells
        )

    def _images(self, cells: Sequence[Any]) -> Categorical[str] | Pictures:
        """The images' paths beside the table; each file is looked at once, however often it is named."""
        if isinstance(cells, (Encoded, TarImages)):
            return self._pictures(cells)
        names = read_each(cells, partial(file_of, self.path)).merged()
        checks = in_threads(problem_of, PathList.of(self.path.parent, names.values))
        rows = zip(names.firsts().tolist(), names.values, checks, strict=True)
        bad = [(name, f"row {row + 1}: {why}") for row, name, why in rows if why is not None]
        slash = os.sep == "/" and any("\\" in name for name, _ in bad)
        self._note_unreadable(
            [why for _, why in bad],
            f"table {str(self.path)!r}, ",
            "; write / between folders" * slash,
        )
        return names

    def _note_unreadable(self, bad: Sequence[str], before: str = "", after: str = "") -> None:
        """Keep what an error says of images that cannot be read; it is raised here, or by ``data``."""
        if bad:
            more = f"; and {len(bad) - 10} more" * (len(bad) > 10)
            self.unreadable = f"{before}{'; '.join(bad[:10])}{more}{after}"
        if bad and self.check_images:
            raise DataError(self.unreadable)

    def _pictures(self, cells: Sequence[Any]) -> Pictures:
        """Images in the table itself; each is looked at as one in a file is."""

        def look(index: int) -> int | str:
            source = cells[index]
            none = "no image: expected its bytes, or the path of a file"
            why = none if source is None else problem_of(source)
            return content_key(source) if why is None else f"{self.where(index + 1)}: {why}"

        found = list(in_threads(look, range(len(cells))))
        bad = [why for why in found if isinstance(why, str)]
        self._note_unreadable(bad)
        keys = (key if isinstance(key, int) else 0 for key in found)
        return Pictures(cells, np.fromiter(keys, np.uint64, len(found)))

    def _repeated(self, labels: Tensor) -> tuple[str, ...]:
        """What is to be said of images in several rows; DataError where a file's labels differ."""
        names: Categorical[Any] = (
            self.samples
            if isinstance(self.samples, Categorical)
            else Categorical.of(self.samples.keys.tolist())
        )
        firsts = names.firsts()[names.codes]
        later = np.flatnonzero(firsts != np.arange(len(names)))
        if not len(later):
            return ()
        values = labels.numpy().reshape(len(names), -1)
        other = (values[later] != values[firsts[later]]).any(1)
        if other.any() and isinstance(self.samples, Categorical):
            row = later[other][0]
            raise self._fail(
                int(row) + 1,
                f"image {names[row]!r} has other labels than in row {firsts[row] + 1}: expected all labels of an "
                "image in one row",
            )
        return (
            Surveyed(f"{len(later)} rows have an image that an earlier row has; they were kept"),
        )

    def _groups(self, cells: Sequence[Any]) -> list[str]:
        """The group of each row; DataError for a row without, and for a group in two splits."""
        seen: dict[str, str] = {}
        found = ["" if cell is None or cell != cell else str(cell).strip() for cell in cells]
        for at, (group, part) in enumerate(zip(found, self.parts, strict=True), 1):
            if not group:
                raise self._fail(at, f"{self.group} is empty: expected a group")
            if seen.setdefault(group, part) != part:
                raise self._fail(
                    at, f"group {group!r:.80} is in {part} and in {seen[group]}: expected one split"
                )
        return found

    def _known(self, given: Categorical[tuple[str, ...]]) -> tuple[str, ...]:
        """The names that train's samples have, sorted; DataError for one that only another split has."""
        splits = self.parts.values
        places = np.bincount(given.codes * len(splits) + self.parts.codes).nonzero()[0]
        pairs = [
            (given.values[at // len(splits)], splits[at % len(splits)]) for at in places.tolist()
        ]
        train = [names for names, part in pairs if part == "train"] or given.values
        known = tuple(sorted({name for names in train for name in names}))
        if {name for names, _ in pairs for name in names} == set(known):
            return known
        for at, (names, part) in enumerate(zip(given, self.parts, strict=True), 1):
            for name in names:
                if name not in known:
                    raise self._fail(
                        at,
                        f"label {name!r:.80} is in {part} and not in train: expected one of "
                        f"{', '.join(map(repr, known[:5]))}{near_misses(name, known)}",
                    )
        return known

    def _classification(self) -> tuple[tuple[str, ...], Tensor, tuple[str, ...]]:
        (cells,) = self.labels.values()
        given = read_each(cells, self._label)
        classes = self._known(given)
        if all(map(_FRACTION.fullmatch, classes)) and not all(
            float(c).is_integer() for c in classes
        ):
            self.notes += (
                f"the {len(classes)} classes are numbers with fractions: kind= regression learns numbers",
            )
        for name in classes:
            parts = {part.strip() for part in re.split("[,;|]", name)}
            if len(parts) > 1 and parts <= set(classes):
                self.notes += (
                    f"class {name!r} is made of other classes: kind= multilabel learns several labels",
                )
                break
        places = {name: index for index, name in enumerate(classes)}
        numbers = torch.tensor([places[name] for (name,) in given.values])
        return classes, numbers[torch.from_numpy(given.codes)], ()

    def _label(self, at: int, cell: Any) -> tuple[str, ...]:
        whole = isinstance(cell, (str, int)) and not isinstance(cell, bool)
        if not whole or not str(cell).strip():
            raise self._fail(
                at, f"label {cell!r:.40}: expected the name of a class, a text or a whole number"
            )
        return (_name(cell),)

    def _multilabel(self) -> tuple[tuple[str, ...], Tensor, tuple[str, ...]]:
        (cells, *others) = self.labels.values()
        if others or all(str(cell).strip().lower() in _FLAGS for cell in categorical(cells).values):
            flags = self._numbers(self._flag, torch.bool)
            self._note_everywhere(tuple(self.labels), flags)
            return tuple(self.labels), flags, ()
        given = read_each(cells, self._names)
        if max(map(len, given.values)) < 2:
            self.notes += (
                f"no row has more than one label: is {self.separator!r} what stands between them (separator=)?",
            )
        names = self._known(given)
        if not names:
            raise DataError(f"table {str(self.path)!r}: no row has a label: expected some")
        places = {name: index for index, name in enumerate(names)}
        labels = torch.zeros(len(given.values), len(names), dtype=torch.bool)
        for row, each in enumerate(given.values):
            labels[row, [places[name] for name in each]] = True
        labels = labels[torch.from_numpy(given.codes)]
        if names == ("0", "1") and bool(labels.all()):
            raise DataError(f"table {str(self.path)!r}: every row is {_MULTI_HOT}")
        self._note_everywhere(names, labels)
        return names, labels, ()

    def _note_everywhere(self, names: Sequence[str], labels: Tensor) -> None:
        """Say which labels cannot be learned, since all of train's rows have them."""
        train = torch.tensor([part == "train" for part in self.parts.values])[self.parts.codes]
        whole = labels[train].all(0).tolist() if train.sum() > 1 else ()
        if every := [name for name, all_of in zip(names, whole, strict=False) if all_of]:
            some = f"{', '.join(every[:5])}{', ...' * (len(every) > 5)}"
            self.notes += (f"all training rows have the label {some}: nothing is learned of it",)

    def _names(self, at: int, cell: Any) -> tuple[str, ...]:
        """The labels in a cell; none of an empty one."""
        if isinstance(cell, str) and cell.lstrip().startswith(("[", "{", "('", '("')):
            cell = self._list(at, cell.strip())
        parts = cell.split(self.separator) if isinstance(cell, str) else cell
        if parts is None:
            return ()
        flags = isinstance(parts, list) and [str(one).strip().lower() for one in parts]
        if flags and (
            any(isinstance(one, bool) for one in parts)
            or (len(set(flags)) < len(flags) and set(flags) <= _FLAGS.keys())
        ):
            raise self._fail(at, f"labels {cell!r:.80}: {_MULTI_HOT}")
        if not isinstance(parts, list) or not all(isinstance(one, (str, int)) for one in parts):
            raise self._fail(
                at, f"labels {cell!r:.80}: expected names with {self.separator!r} between them"
            )
        found = tuple([_name(one) for one in parts if str(one).strip()])
        if len(set(found)) != len(found):
            raise self._fail(at, f"labels {cell!r:.80}: expected each once")
        return found

    def _list(self, at: int, cell: str) -> Any:
        """The list in a cell, as JSON or as Python writes lists, tuples and sets."""
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            pass
        try:
            # Python joins texts that have no comma between them, as in a NumPy array's: ['a' 'b'].
            found = None if _NO_COMMA.search(cell) else ast.literal_eval(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found = None
        if isinstance(found, (list, tuple, set)):
            return list(found)
        raise self._fail(at, f'labels {cell!r:.80}: expected a list such as ["a", "b"]')

    def _flag(self, name: str, at: int, cell: Any) -> bool:
        found = _FLAGS.get(str(cell).strip().lower())
        if found is None:
            raise self._fail(at, f"label {name!r} is {cell!r:.40}: expected 0 or 1")
        return found

    def _numbers(self, read: Callable[[str, int, Any], float], dtype: torch.dtype) -> Tensor:
        """Every cell of the label columns as a number, (rows, columns)."""
        columns = []
        for name, cells in self.labels.items():
            given = read_each(cells, partial(read, name))
            values = torch.tensor(given.values, dtype=dtype)
            columns.append(values[torch.from_numpy(given.codes)])
        return torch.stack(columns, dim=1)

    def _regression(self) -> tuple[tuple[str, ...], Tensor, tuple[str, ...]]:
        parted = [_UNIT.fullmatch(name) for name in self.labels]
        names = [name if m is None else m[1] for name, m in zip(self.labels, parted, strict=True)]
        units = ["" if m is None else m[2] for m in parted]
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise DataError(
                f"table {str(self.path)!r}: two columns of {twice[0]!r} in {' and '.join(units)}: expected one"
            )
        numbers = self._numbers(self._number, torch.float64)
        self.notes += _rounded(names, numbers)
        return tuple(names), numbers.float(), tuple(units) if any(units) else ()

    def _tokens(self) -> tuple[tuple[str, ...], Tensor, tuple[str, ...]]:
        (cells,) = self.labels.values()
        rows = [self._tags(at, cell) for at, cell in enumerate(cells, 1)]
        types = self._known(
            Categorical.of(tuple([tag[2:] for tag in row if tag != "O"]) for row in rows)
        )
        tags = ("O", *(f"{place}-{name}" for name in types for place in "BI"))
        places = {tag: index for index, tag in enumerate(tags)}
        return tags, torch.tensor([places[tag] for row in rows for tag in row]), ()

    def _tags(self, at: int, cell: Any) -> list[str]:
        """The tags in a cell, as many as the row's text has words."""
        given = _joined(cell)
        found = given.split() if isinstance(given, str) else []
        words = len(spaced_words(self.samples[at - 1]))
        if len(found) != words:
            raise self._fail(at, f"{len(found)} tags for {words} words: expected one for each word")
        if wrong := [tag for tag in found if not _TAG.fullmatch(tag)]:
            raise self._fail(at, f"tag {wrong[0]!r:.80}: expected O, B-TYPE or I-TYPE")
        return found

    def _number(self, name: str, at: int, cell: Any) -> float:
        try:
            plain = not isinstance(cell, bool) and "_" not in str(cell)
            number = float(cell if plain else "")
        except (TypeError, ValueError):
            number = math.nan
        if not abs(number) <= _LARGEST:
            comma = ", with a point and no comma" * ("," in str(cell))
            raise self._fail(at, f"{name!r} is {cell!r:.40}: expected a finite number{comma}")
        return number


def _rounded(names: Sequence[str], numbers: Tensor) -> tuple[str, ...]:
    """A line for each column of float64 ``numbers`` whose differences suffer when they become float32."""
    lost = (numbers - numbers.float()).abs().amax(0).tolist()
    spreads = numbers.std(0, correction=0).tolist()
    return tuple(
        [
            f"{name!r} loses up to {most:.3g} in float32, and its standard deviation is {spread:.3g}: "
            "subtract an offset or choose another unit"
            for name, most, spread in zip(names, lost, spreads, strict=True)
            if most > _MOST_LOST * spread > 0
        ]
    )


def _name(cell: str | int) -> str:
    """A label's name; accents, which may be written in two ways, in one of them."""
    return unicodedata.normalize("NFC", str(cell)).strip()


def _other_splits(columns: Mapping[str, Columns]) -> tuple[str, ...]:
    """A note on each column whose cells are the names of splits; of a file that is read in parts by its name first."""
    found = []
    for name, held in columns.items():
        if _IN_SPLIT.fullmatch(name.lower()):
            found.append(
                f"column {name!r} was not used: a column of splits has train, val or test in its cells"
            )
        if isinstance(held, ArrowColumns) and not _SPLITTING.search(name.lower()):
            continue
        cells = held[name]
        if isinstance(cells, (Encoded, TarImages)):
            continue
        if split_of(str(cells[0])):
            known = {split_of(cell) for cell in set(map(str, categorical(cells).values))}
            if None not in known and len(known) > 1:
                found.append(
                    f"column {name!r} names splits and was not used: name it in columns= (split={name})"
                )
    return tuple(found)


def _joined(cell: Any) -> Any:
    """A JSON list of words as a text with spaces between them; anything else as it is."""
    words = isinstance(cell, list) and all(isinstance(word, str) for word in cell)
    return " ".join(cell) if words else cell
