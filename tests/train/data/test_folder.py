"""Image folders: what is accepted, and what is refused with the thing's name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from piggyback.errors import DataError
from piggyback.train import load_folder, load_split


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_val_is_cut_from_train_class_by_class_and_stays_the_same(folder: Path) -> None:
    data = load_folder(folder)
    assert data.name == "pets"
    assert data.classes == ("cat", "dog")
    assert data.train.counts() == [9, 9]
    assert data.val.counts() == [1, 1]
    assert data.test.counts() == [4, 4]
    assert [str(each) for each in data.cut] == ["val 0.1"]
    assert data.val.files == load_folder(folder).val.files
    assert any(data.val.files != load_folder(folder, seed=s).val.files for s in range(1, 6))
    assert not set(data.train.files) & set(data.val.files)


def test_class_folders_alone_are_cut_three_ways(folder: Path) -> None:
    data = load_folder(folder / "train")
    assert [images.counts() for images in data.splits().values()] == [[7, 7], [1, 1], [2, 2]]
    assert [str(each) for each in data.cut] == ["test 0.2", "val 0.1"]


def test_other_files_hidden_files_and_depth(folder: Path, save_image: Callable[..., Path]) -> None:
    (folder / "train" / "cat" / "notes.txt").write_text("x")
    (folder / "train" / "cat" / "._00.png").write_text("x")
    (folder / "train" / ".cache").mkdir()
    save_image(folder / "train" / "cat" / "deeper" / "x.png")
    data = load_folder(folder)
    assert data.train.counts()[0] == 10
    assert any(note.startswith("1 images") and "'deeper' in 'cat'" in note for note in data.notes)


def test_one_split(folder: Path) -> None:
    assert load_split(folder / "test").counts() == [4, 4]
    with pytest.raises(DataError, match=r"absent.*no such directory"):
        load_split(folder / "absent")


def _empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def _one_class(root: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(root / split / "dog")


def _flat_splits(root: Path) -> None:
    for split in ("train", "test"):
        shutil.copy(root / split / "dog" / "00.png", root / split)
        for name in ("cat", "dog"):
            shutil.rmtree(root / split / name)


def _a_table_beside(root: Path) -> None:
    shutil.rmtree(root / "test")
    (root / "train" / "cat").rename(root / "images")
    shutil.rmtree(root / "train")
    (root / "labels.csv").write_text("image,label")


def _phone(root: Path) -> None:
    for file in (root / "train" / "cat").iterdir():
        file.rename(file.with_suffix(".HEIC"))


def _two_val(root: Path) -> None:
    for name in ("val", "valid"):
        shutil.copytree(root / "test", root / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "no such directory"),
        (_empty, "no class folders"),
        (lambda root: (root / "train" / "fox").mkdir(), "fox.*holds no images"),
        (_one_class, r"1 class \['cat'\]"),
        (
            lambda root: (root / "test" / "dog").rename(root / "test" / "fox"),
            "test differ.*unexpected 'fox'",
        ),
        (lambda root: shutil.rmtree(root / "train"), "holds test but no 'train'"),
        (_two_val, "'val' and 'valid'"),
        (_flat_splits, "'test' and 'train' without class folders"),
        (_a_table_beside, "'images', and a table: give .*labels.csv"),
        (_phone, "cat' holds no images but 10 '.heic' files"),
    ],
)
def test_folders_that_cannot_be_used(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    with pytest.raises(DataError, match=message):
        load_folder(folder)


def test_a_truncated_image_is_named_and_skipped_on_request_only(folder: Path) -> None:
    bad = [truncate(folder / "train" / "cat" / "03.png")]
    for empty in (folder / "train" / "dog" / "05.png", folder / "test" / "dog" / "01.png"):
        empty.write_bytes(b"")
        bad.append(empty)
    with pytest.raises(DataError, match=r"cat/03\.png.*dog/05\.png.*skip"):
        load_folder(folder)
    data = load_folder(folder, skip_bad=True)
    assert data.skipped == tuple(map(str, bad))
    assert data.describe()["skipped"] == 3
    assert len(data.train) + len(data.val) == 18
    assert data.test.counts() == [4, 3]
    for path in (folder / "train" / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no images in train for class 'cat'"):
        load_folder(folder, skip_bad=True)


@pytest.mark.shared_data
def test_real_traffic_signs(shared_data: Path) -> None:
    data = load_folder(shared_data / "gtsrb")
    assert len(data.classes) == 43
    assert len(data.train) + len(data.val) == 3770
    assert len(data.test) == 2500
