"""Folders that were read as something else, and splits that moved."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piggyback.errors import DataError
from piggyback.images.preprocessing import Preprocessing
from piggyback.train.data.folder import load_folder, split_of
from piggyback.train.data.segmentation import is_segmentation_folder
from piggyback.train.data.sets import seen_in, sketch_of

Make = Callable[..., list[Path]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes images of noise, each another, and returns their paths."""
    drawn = np.random.default_rng(0)

    def write(folder: str, count: int = 4, suffix: str = ".png", **options: object) -> list[Path]:
        paths = [tmp_path / folder / f"{i:02d}{suffix}" for i in range(count)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = drawn.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path, **options)
        return paths

    return write


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"), ("TRAINING", "Testing"), ("seg_train", "seg_test"), ("train_images", "test-images"),
        ("trainset", "testset"), ("seg_train/seg_train", "seg_test/seg_test"),
    ],
)  # fmt: skip
def test_splits_are_known_by_their_usual_names(make, tmp_path, train, test):
    for split, count in ((train, 20), (test, 3)):
        for name in ("cat", "dog"):
            make(f"{split}/{name}", count)
    data = load_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.val) == 40
    assert data.test.counts() == [3, 3]


@pytest.mark.parametrize("name", ["dev", "Valid", "validation_set"])
def test_val_has_several_names(name):
    assert split_of(name) == "val"


@pytest.mark.parametrize("name", ["test tube", "trainers", "valley", "developer", "train station"])
def test_a_class_is_not_a_split(name):
    assert split_of(name) is None


def test_a_class_may_be_called_train(make, tmp_path):
    for name in ("train", "plane", "car"):
        make(name, 20)
    assert load_folder(tmp_path).classes == ("car", "plane", "train")


def test_two_folders_of_one_split_are_refused(make, tmp_path):
    for split in ("train", "Training"):
        make(f"{split}/cat")
    with pytest.raises(DataError, match=r"Training.*train"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    "junk", [".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", "Thumbs"]
)
@pytest.mark.parametrize("inside", ["cat/", ""])
def test_copies_that_programs_leave_are_not_read(make, tmp_path, junk, inside):
    for name in ("cat", "dog"):
        make(name, 20)
    make(f"{inside}{junk}", 2)
    data = load_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert sum(len(images) for images in data.splits().values()) == 40
    assert not inside or any(junk in note for note in data.notes)


def test_linked_folders_are_read_once(make, tmp_path):
    for name in ("cat", "dog"):
        make(f"data/{name}", 20)
    make("elsewhere/more", 5)
    (tmp_path / "data/cat/more").symlink_to(tmp_path / "elsewhere/more")
    (tmp_path / "data/cat/loop").symlink_to(tmp_path / "data/cat")
    (tmp_path / "data/dog/gone.png").symlink_to(tmp_path / "nowhere.png")
    data = load_folder(tmp_path / "data")
    assert sum(len(images) for images in data.splits().values()) == 45
    assert any("link" in note for note in data.notes)
    assert any("nowhere" in note for note in data.notes)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".jp2", ".avif"])
def test_images_of_less_usual_endings_are_read(make, tmp_path, suffix):
    if suffix == ".avif" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")
    for name in ("cat", "dog"):
        make(name, 12, suffix)
    assert sum(len(images) for images in load_folder(tmp_path).splits().values()) == 24


def test_what_is_left_out_is_counted_by_kind(make, tmp_path):
    for name in ("cat", "dog"):
        make(name, 20)
    for i in range(3):
        (tmp_path / "cat" / f"{i}.heic").write_bytes(b"x")
    (tmp_path / "cat" / "LICENSE").write_text("x")
    (tmp_path / "dog" / "Thumbs.db").write_bytes(b"x")
    assert load_folder(tmp_path).notes == (
        "passed over: 3 '.heic' file",
        "passed over: 1 file without a suffix",
    )


def test_images_that_are_in_train_and_test_are_counted(make, tmp_path):
    for split, count in (("train", 20), ("test", 4)):
        for name in ("cat", "dog"):
            make(f"{split}/{name}", count)
    for i in (3, 7):
        shutil.copy(tmp_path / f"train/cat/{i:02d}.png", tmp_path / f"test/dog/copy{i}.png")
    notes = load_folder(tmp_path).notes
    assert any(note.startswith("2 ") and "test" in note for note in notes)


def test_all_unreadable_images_are_listed(make, tmp_path):
    for name in ("cat", "dog"):
        make(name, 20)
    for name in ("cat/03.png", "dog/11.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"(?s)cat/03\.png.*dog/11\.png"):
        load_folder(tmp_path)


def test_images_that_come_later_move_none_from_test_to_train(make, tmp_path):
    for name in ("cat", "dog"):
        make(f"{name}/first", 60)
    before = load_folder(tmp_path)
    held_out = {path.read_bytes() for path in before.test.files}
    for name in ("cat", "dog"):
        make(f"{name}/a later month", 60)
    after = load_folder(tmp_path)
    assert held_out <= {path.read_bytes() for path in after.test.files}
    assert not held_out & {path.read_bytes() for path in (*after.train.files, *after.val.files)}


def test_names_and_places_of_images_do_not_matter_for_the_split(make, tmp_path):
    for name in ("cat", "dog"):
        make(name, 60)
    held_out = {path.read_bytes() for path in load_folder(tmp_path).test.files}
    for path in (tmp_path / "cat").glob("*.png"):
        path.rename(path.with_name(f"x{hash(path) % 977}-{path.name}"))
    assert held_out == {path.read_bytes() for path in load_folder(tmp_path).test.files}


def test_copies_of_an_image_stay_in_one_split(make, tmp_path):
    for name in ("cat", "dog"):
        make(name, 30)
    for path in (tmp_path / "cat").glob("*.png"):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    parts = [
        {p.read_bytes() for p in images.files} for images in load_folder(tmp_path).splits().values()
    ]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]


@pytest.mark.parametrize("count", [40, 700])
def test_a_sketch_tells_how_many_images_were_seen(make, tmp_path, count):
    for name in ("cat", "dog"):
        make(name, count)
    data = load_folder(tmp_path)
    sketch = sketch_of(data.train, data.val)
    assert seen_in(data.test, sketch) == 0
    whole = data.train.joined(data.val).joined(data.test)
    learned = len(data.train) + len(data.val)
    assert seen_in(whole, sketch) == pytest.approx(learned, rel=0.0 if count == 40 else 0.12)


def test_splits_of_label_maps_have_the_same_names(make, tmp_path):
    make("Training/images")
    make("Training/labels")
    assert is_segmentation_folder(tmp_path)


def test_a_link_to_the_folders_above_or_to_another_class_is_not_read_again(make, tmp_path):
    make("cat", 20)
    make("dog", 20)
    (tmp_path / "cat" / "more").symlink_to(tmp_path)
    (tmp_path / "dog" / "also").symlink_to(tmp_path / "cat")
    data = load_folder(tmp_path)
    assert sum(len(images) for images in data.splits().values()) == 40
    assert any("read elsewhere" in note for note in data.notes)


@pytest.mark.parametrize("target", [".", "cat"])
def test_a_class_that_is_a_link_to_others_is_refused(make, tmp_path, target):
    make("cat", 20)
    make("dog", 20)
    (tmp_path / "all").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match="'all'"):
        load_folder(tmp_path)


def test_copies_of_one_image_are_not_cut_apart(make, tmp_path):
    for name in ("cat", "dog"):
        make(name, 1)
        (file,) = (tmp_path / name).iterdir()
        for i in range(5):
            (tmp_path / name / f"copy{i}.png").write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="two different images"):
        load_folder(tmp_path)


def test_a_flat_test_folder_beside_train_is_named(make, tmp_path):
    for name in ("train/cat", "train/dog", "test"):
        make(name, 10)
    assert any("'test'" in note for note in load_folder(tmp_path).notes)


def test_cached_images_are_cropped_once(make, tmp_path):
    for name in ("cat", "dog"):
        make(name, 10)
    train, view = load_folder(tmp_path).train, Preprocessing(8, crop_pct=0.5)
    ready = train.in_memory(view)
    assert all(torch.equal(ready.load(i, view), train.load(i, view)) for i in range(len(train)))


def test_val_and_test_may_lack_a_class_and_it_is_said(make, tmp_path):
    for name in ("train/cat", "train/dog", "train/owl", "val/cat", "val/owl", "test/dog"):
        make(name)
    (tmp_path / "test" / "owl").mkdir()
    data = load_folder(tmp_path)
    assert data.val.classes == data.test.classes == ("cat", "dog", "owl")
    assert (data.val.counts(), data.test.counts()) == ([4, 0, 4], [0, 4, 0])
    assert any("val" in note and "'dog'" in note for note in data.notes)
    assert any("test" in note and "'cat'" in note for note in data.notes)
    make("val/fox")
    with pytest.raises(DataError, match="'fox'"):
        load_folder(tmp_path)


def test_accents_are_one_class_in_both_spellings(make, tmp_path):
    for split, form in (("train", "NFC"), ("val", "NFD"), ("test", "NFC")):
        for name in ("caf\u00e9", "bar"):
            make(f"{split}/{unicodedata.normalize(form, name)}")
    data = load_folder(tmp_path)
    assert data.val.classes == ("bar", "caf\u00e9")
    assert data.val.counts() == [4, 4]
    make("train/cafe\u0301")
    with pytest.raises(DataError, match="accents"):
        load_folder(tmp_path)
