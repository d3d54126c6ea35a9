"""Folders, tables and tars as people make them, that were read as something else without a word."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from piggyback.errors import DataError
from piggyback.train.data.columns import read_texts
from piggyback.train.data.folder import load_folder
from piggyback.train.data.labelled import LabelledSet
from piggyback.train.data.survey import survey_splits
from piggyback.train.data.table import Table, load_table
from piggyback.train.data.text import TextSet


@pytest.fixture
def table(tmp_path: Path, make: Callable[..., list[Path]]) -> Callable[..., Path]:
    """Writes a table with a row for each of twelve images: its name, then what ``cells`` gives for its number."""
    names = [file.name for file in make(".", count=12)]

    def write(header: str, cells: Callable[[int], str], first: str = "", comma: str = ",") -> Path:
        rows = [comma.join((name, cells(i))) for i, name in enumerate(names)]
        place = tmp_path / "t.csv"
        place.write_text(first + "\n".join([header, *rows]) + "\n")
        return place

    return write


def noted(notes: tuple[str, ...], *words: str) -> bool:
    return any(all(word in note for word in words) for note in notes)


# -- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "wanted"),
    [
        (("cat/train", "cat/Test", "dog/train", "dog/Test"), "'Test' and 'train'.*move"),
        (("images/train/cat", "images/val/cat"), "'train' and 'val'.*give '.*images'"),
        (("my data/cat", "my data/dog"), "'my data'.*'cat', 'dog'.*give '.*my data'"),
        (("train/images/cat", "train/images/dog", "test/images/cat"), "'images'.*give"),
    ],
)
def test_folders_too_deep_or_turned_round_are_refused(make, tmp_path, folders, wanted):
    make(*folders)
    with pytest.raises(DataError, match=wanted):
        load_folder(tmp_path)


def test_folds_and_kinds_of_classes_are_said_to_be_the_classes(make, tmp_path):
    make("fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog")
    assert noted(load_folder(tmp_path).notes, "'fold1'", "'fold2'", "'cat'", "'dog'")
    make("fold1", count=1)  # images of its own: it is a class
    assert not noted(load_folder(tmp_path).notes, "the classes are")


@pytest.mark.parametrize("other", ["dog", "dog/a"])
def test_a_single_class_may_have_a_test_and_a_train_in_it(make, tmp_path, other):
    make("cat/train", "cat/test", other, f"{other}/more", count=20)
    assert load_folder(tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize("within", ["", "train/"])
def test_images_in_no_class_are_counted(make, tmp_path, within):
    make(f"{within}cat", f"{within}dog", count=20)
    make(within or ".", count=3)
    assert noted(load_folder(tmp_path).notes, "3 image", "outside")


def test_an_image_under_two_classes_is_said(make, tmp_path):
    for name in ("cat", "dog"):
        make(f"train/{name}", count=20)
        make(f"val/{name}")
        make(f"test/{name}")
    shutil.copy(tmp_path / "train/cat/03.png", tmp_path / "train/dog/copy.png")
    shutil.copy(tmp_path / "train/cat/04.png", tmp_path / "train/cat/copy.png")
    assert noted(load_folder(tmp_path).notes, "1 training images", "other labels")


@pytest.mark.parametrize(
    ("one", "other"),
    [("Cat", "cat"), ("1", "1.0"), ("007", "7"), ("a  b", "a b"), ("a\u200b", "a")],
)
def test_classes_that_differ_only_in_how_they_are_written(table, one, other):
    data = load_table(table("image,label", lambda i: (one, other, "x")[i % 3]))
    assert noted(data.notes, repr(one), repr(other))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("a nan", "'nan'"),
        ("None b", "'None'"),
        ("0.5 1.5 2", "regression"),
        ("none b 1.5", ""),
        ("1 2.0", ""),
    ],
)
def test_labels_that_are_missing_or_numbers_are_said(table, cells, said):
    given = cells.split()
    data = load_table(table("image,label", lambda i: given[i % len(given)]))
    assert noted(data.notes, said) == bool(said), data.notes


# -- tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["sep=;\n", '"sep=;"\n', "\ufeffsep=;\r\n"])
def test_a_first_line_that_names_the_separator_is_none_of_the_columns(table, first):
    found = Table(table("image;label", lambda i: f"a,{i % 2}", first, ";")).splits["train"]
    assert found.classes == ("a,0", "a,1")


def test_accents_are_one_label_in_both_spellings(table):
    place = table("image,label", lambda i: ("cafe\u0301", "caf\u00e9", "tea")[i % 3])
    assert load_table(place).classes == ("caf\u00e9", "tea")


@pytest.mark.parametrize("name", ["Split", "set", "phase"])
def test_a_column_of_splits_that_is_not_asked_for_is_said(table, name):
    place = table(f"image,label,{name}", lambda i: f"{i % 2},{('Train', 'TEST')[i % 5 == 0]}")
    assert noted(load_table(place).notes, f"split={name}")
    asked = load_table(place, columns={"split": name})
    assert not noted(asked.notes, "split=")
    assert len(asked.test) == 3


def test_a_column_of_train_alone_is_no_split(table):
    assert load_table(table("image,label,set", lambda i: f"{i % 2},train")).notes == ()


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_a_label_column_that_is_named_twice_is_refused(table, kind):
    place = table("image,a,b", lambda i: f"{i % 2},{i % 3}")
    with pytest.raises(DataError, match="'a' twice"):
        load_table(place, None, {"label": "a,b,a"}, kind)


def test_one_column_of_flags_is_one_label(table):
    place = table("image,smiling", lambda i: str(i % 2))
    found = Table(place, {"label": "smiling"}, "multilabel").splits["train"]
    assert found.classes == ("smiling",)
    assert found.labels[:, 0].tolist() == [bool(i % 2) for i in range(12)]


def test_labels_with_another_separator_are_said_and_other_brackets_refused(table):
    load = load_table
    assert noted(
        load(table("image,label", lambda i: f"{i % 2};x"), None, None, "multilabel").notes, "','"
    )
    assert not noted(
        load(table("image,label", lambda i: f'"{i % 2},x"'), None, None, "multilabel").notes, "','"
    )
    with pytest.raises(DataError, match="no row has a label"):
        load(table("image,label", lambda i: ""), None, None, "multilabel")
    with pytest.raises(DataError, match=r"row 1: labels .*a list such as"):
        load(table("image,label", lambda i: f'"{{{i % 2},x}}"'), None, None, "multilabel")


def test_numbers_are_measured_in_the_tasks_units(table):
    def read(unit: str) -> LabelledSet:
        column = f"height ({unit})" if unit else "height"
        return Table(table(f"image,{column}", str), {"label": column}, "regression").splits["train"]

    assert torch.equal(read("m").relabelled(("height",), ("m",)).labels, read("m").labels)
    assert read("").relabelled(("height",), ("m",)).units == ()  # of no unit nothing is known
    with pytest.raises(DataError, match="'height' is in cm: expected m"):
        read("cm").relabelled(("height",), ("m",))
    place = table("image,height (m),height (cm)", lambda i: f"{i},{i}")
    with pytest.raises(DataError, match="two columns of 'height'"):
        load_table(place, None, {"label": "height (m),height (cm)"}, "regression")


def test_a_number_that_no_float_holds_is_an_error_of_its_row(table):
    place = table("image,label", lambda i: "1e39" if i == 4 else str(i))
    with pytest.raises(DataError, match="row 5: 'label' is '1e39'"):
        load_table(place, None, None, "regression")


def test_columns_without_a_name_are_passed_over_and_other_names_listed(table):
    assert load_table(table("image,label,,", lambda i: f"{i % 2},,")).classes == ("0", "1")
    with pytest.raises(DataError, match=r"no column 'image'.*'Image', 'Label'"):
        load_table(table("Image,Label", str))


def test_a_lone_surrogate_is_an_error_of_its_row(tmp_path):
    good = [{"text": f"good {i} \U0001f600", "label": str(i % 2)} for i in range(20)]
    place = tmp_path / "t.jsonl"
    for bad in ({"text": "\ud83d", "label": "1"}, {"text": "a", "label": "\udc00"}):
        place.write_text("".join(json.dumps(row) + "\n" for row in [*good, bad]))
        with pytest.raises(DataError, match="row 21: cannot be read as JSON"):
            load_table(place)
    place.write_text("".join(json.dumps(row) + "\n" for row in good))
    assert load_table(place).classes == ("0", "1")
    with pytest.raises(DataError, match="lone surrogate"):
        TextSet(("a",), torch.tensor([0]), ("\ud83d",)).content_keys()


def test_texts_in_two_splits_and_under_two_labels_are_said(tmp_path):
    rows = [(f"text {i}", str(i % 2), "train") for i in range(20)]
    rows += [("text 1", "1", "test"), ("text 3", "1", "val"), ("text 5", "0", "train")]
    place = tmp_path / "t.tsv"
    place.write_text("text\tlabel\tsplit\n" + "".join("\t".join(row) + "\n" for row in rows))
    notes = load_table(place).notes
    assert noted(notes, "1 texts of val")
    assert noted(notes, "1 texts of test")
    assert noted(notes, "1 training texts", "other labels")
    assert noted(notes, "val has no texts", "'0'")


def test_a_line_of_texts_ends_where_the_file_ends_it(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\u2028two\x0bthree\x85\r\n\r\nfour\n".encode())
    assert [line.strip() for line in read_texts(tmp_path / "a.txt")] == [
        "one\u2028two\x0bthree",
        "four",
    ]


def test_check_names_every_bad_image_of_a_table(table, tmp_path):
    place = table("image,label", lambda i: str(i % 2))
    for i in range(11):
        (tmp_path / f"{i:02d}.png").write_bytes(b"")
    (tmp_path / "11.png").unlink()
    found = survey_splits("t", Table(place, {}, "classification", ",", check_images=False).splits)
    assert len(found.unreadable) == 12
    with pytest.raises(DataError, match="and 2 more"):
        load_table(place)


def test_files_in_a_tar_that_are_passed_over_are_counted(make, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, file in enumerate(make("x", count=12)):
            for name, data in (
                (f"{i}.png", file.read_bytes()),
                (f"{i}.cls", str(i % 2).encode()),
                (f"{i}.v{i}.png", file.read_bytes()),
                (f"._{i}.png", b"x"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    notes = load_table(tmp_path / "a.tar").notes
    assert notes == ("passed over: 12 '.png' file, with a dot before its ending",)
