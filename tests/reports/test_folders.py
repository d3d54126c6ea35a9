"""Folders that were read as something else, and splits that moved."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from piggyback.errors import DataError, InputError
from piggyback.images.decode import check_image, read_image, upright_size
from piggyback.images.preprocessing import Preprocessing
from piggyback.model.multitask import MultiTaskModel
from piggyback.serve.inputs import prepare
from piggyback.train.data.folder import load_folder, split_of
from piggyback.train.data.segmentation import is_segmentation_folder, load_camvid_layout
from piggyback.train.data.sets import ImageSet, from_tensors, seen_in, sketch_of
from support.damage import damaged
from support.encoded_pictures import KINDS, encoded, photo


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"), ("TRAINING", "Testing"), ("seg_train", "seg_test"), ("train_images", "test-images"),
        ("trainset", "testset"), ("seg_train/seg_train", "seg_test/seg_test"),
    ],
)  # fmt: skip
def test_splits_are_known_by_their_usual_names(make, tmp_path, train, test):
    for split, count in ((train, 20), (test, 3)):
        make(f"{split}/cat", f"{split}/dog", count=count)
    data = load_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.val) == 40
    assert data.test.counts() == [3, 3]


@pytest.mark.parametrize("name", ["val", "dev", "Valid", "validation", "validation_set"])
def test_val_has_several_names(name):
    assert split_of(name) == "val"


@pytest.mark.parametrize("name", ["test tube", "trainers", "valley", "developer", "train station"])
def test_a_class_is_not_a_split(name):
    assert split_of(name) is None


def test_a_class_may_be_called_train(make, tmp_path):
    make("train", "plane", "car", count=20)
    assert load_folder(tmp_path).classes == ("car", "plane", "train")


@pytest.mark.parametrize(
    "junk", [".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", "Thumbs"]
)
@pytest.mark.parametrize("inside", ["cat/", ""])
def test_copies_that_programs_leave_are_not_read(make, tmp_path, junk, inside):
    make("cat", "dog", count=20)
    make(f"{inside}{junk}", count=2)
    data = load_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert sum(len(images) for images in data.splits().values()) == 40
    assert not inside or any(junk in note for note in data.notes)


def test_linked_folders_are_read_once(make, tmp_path):
    make("data/cat", "data/dog", count=20)
    make("elsewhere/more", count=5)
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
    make("cat", "dog", count=12, suffix=suffix)
    assert sum(len(images) for images in load_folder(tmp_path).splits().values()) == 24


def test_what_is_left_out_is_counted_by_kind(make, tmp_path):
    make("cat", "dog", count=20)
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
        make(f"{split}/cat", f"{split}/dog", count=count)
    for i in (3, 7):
        shutil.copy(tmp_path / f"train/cat/{i:02d}.png", tmp_path / f"test/dog/copy{i}.png")
    notes = load_folder(tmp_path).notes
    assert any(note.startswith("2 ") and "test" in note for note in notes)


def test_images_that_come_later_move_none_from_test_to_train(make, tmp_path):
    make("cat/first", "dog/first", count=60)
    before = load_folder(tmp_path)
    held_out = {path.read_bytes() for path in before.test.files}
    make("cat/a later month", "dog/a later month", count=60)
    after = load_folder(tmp_path)
    assert held_out <= {path.read_bytes() for path in after.test.files}
    assert not held_out & {path.read_bytes() for path in (*after.train.files, *after.val.files)}


def test_names_and_places_of_images_do_not_matter_for_the_split(make, tmp_path):
    make("cat", "dog", count=60)
    held_out = {path.read_bytes() for path in load_folder(tmp_path).test.files}
    for path in (tmp_path / "cat").glob("*.png"):
        path.rename(path.with_name(f"x{hash(path) % 977}-{path.name}"))
    assert held_out == {path.read_bytes() for path in load_folder(tmp_path).test.files}


def test_copies_of_an_image_stay_in_one_split(make, tmp_path):
    make("cat", "dog", count=30)
    for path in (tmp_path / "cat").glob("*.png"):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    parts = [
        {p.read_bytes() for p in images.files} for images in load_folder(tmp_path).splits().values()
    ]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]


@pytest.mark.parametrize("count", [40, 700])
def test_a_sketch_tells_how_many_images_were_seen(make, tmp_path, count):
    make("cat", "dog", count=count)
    data = load_folder(tmp_path)
    sketch = sketch_of(data.train, data.val)
    assert seen_in(data.test, sketch) == 0
    parts = (data.train, data.val, data.test)
    labels = torch.cat([part.labels for part in parts])
    whole = replace(
        data.train, labels=labels, files=tuple(file for part in parts for file in part.files)
    )
    learned = len(data.train) + len(data.val)
    assert seen_in(whole, sketch) == pytest.approx(learned, rel=0.0 if count == 40 else 0.12)


def test_splits_of_label_maps_have_the_same_names(make, tmp_path):
    make("Training/images")
    make("Training/labels")
    assert is_segmentation_folder(tmp_path)


def test_a_link_to_the_folders_above_or_to_another_class_is_not_read_again(make, tmp_path):
    make("cat", "dog", count=20)
    (tmp_path / "cat" / "more").symlink_to(tmp_path)
    (tmp_path / "dog" / "also").symlink_to(tmp_path / "cat")
    data = load_folder(tmp_path)
    assert sum(len(images) for images in data.splits().values()) == 40
    assert any("read elsewhere" in note for note in data.notes)


@pytest.mark.parametrize("target", [".", "cat"])
def test_a_class_that_is_a_link_to_others_is_refused(make, tmp_path, target):
    make("cat", "dog", count=20)
    (tmp_path / "all").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match="'all'"):
        load_folder(tmp_path)


def test_copies_of_one_image_are_not_cut_apart(make, tmp_path):
    for name in ("cat", "dog"):
        make(name, count=1)
        (file,) = (tmp_path / name).iterdir()
        for i in range(5):
            (tmp_path / name / f"copy{i}.png").write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="two different images"):
        load_folder(tmp_path)


def test_a_flat_test_folder_beside_train_is_named(make, tmp_path):
    make("train/cat", "train/dog", "test", count=10)
    assert any("'test'" in note for note in load_folder(tmp_path).notes)


def test_cached_images_are_cropped_once(make, tmp_path):
    make("cat", "dog", count=10)
    train, view = load_folder(tmp_path).train, Preprocessing(8, crop_pct=0.5)
    ready = train.in_memory(view)
    assert all(torch.equal(ready.load(i, view), train.load(i, view)) for i in range(len(train)))


def test_val_and_test_may_lack_a_class_and_it_is_said(make, tmp_path):
    make("train/cat", "train/dog", "train/owl", "val/cat", "val/owl", "test/dog")
    (tmp_path / "test" / "owl").mkdir()
    data = load_folder(tmp_path)
    assert data.val.classes == data.test.classes == ("cat", "dog", "owl")
    assert (data.val.counts(), data.test.counts()) == ([6, 0, 6], [0, 6, 0])
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
    assert data.val.counts() == [6, 6]
    make("train/cafe\u0301")
    with pytest.raises(DataError, match="accents"):
        load_folder(tmp_path)


def test_class_names_that_are_not_utf_8_are_refused_and_file_names_are_not(make, tmp_path):
    (file, *_) = make("cat", "dog", count=20)
    file.rename(file.with_name(os.fsdecode(b"k\xe4tzchen.png")))
    data = load_folder(tmp_path)
    assert sum(len(images) for images in data.splits().values()) == 40
    assert data.describe()["counts"]
    (tmp_path / "dog").rename(tmp_path / os.fsdecode(b"h\xfcnd"))
    with pytest.raises(DataError, match="UTF-8"):
        load_folder(tmp_path)


def test_labels_and_classes_may_come_from_numpy_and_torch():
    images = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1).expand(40, 3, 8, 8)
    labels = torch.arange(40) % 2
    wanted = from_tensors("x", ["0", "1"], (images, labels))
    for classes in (np.array([0, 1]), torch.tensor([0, 1]), ["0", "1"], range(2), 2):
        for given in (
            labels.numpy(),
            labels.int(),
            labels.tolist(),
            labels.numpy().astype("uint8"),
        ):
            found = from_tensors("x", classes, (images.numpy(), given))
            assert found.classes == ("0", "1")
            assert torch.equal(found.train.labels, wanted.train.labels)


@pytest.mark.parametrize(
    "classes",
    [
        np.array([["a"]]), torch.zeros(2), [b"a", "b"], [None, "b"], ["", "b"], {"a": 1}, b"ab", [True, False],
        [" ", "b"], ["\udcff", "b"], ["e\u0301", "\u00e9"],
    ],
)  # fmt: skip
def test_classes_that_are_no_names_are_refused(classes):
    model = MultiTaskModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(InputError, match="class"):
        model.start_task("x", classes)
    assert model.active_task is None


def test_accents_of_a_task_are_read_in_both_spellings():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    held = ImageSet(("cafe\u0301", "tea"), torch.tensor([0, 1]), images)
    assert held.relabelled(("tea", "caf\u00e9")).labels.tolist() == [1, 0]


def refusal_of(attempt: Callable[[], object]) -> str | None:
    """What a DataError says, in one line; None where there is none."""
    try:
        attempt()
    except DataError as error:
        said = str(error)
        return said if len(said.splitlines()) == 1 else pytest.fail(f"several lines: {said!r}")
    return None


def served(data: bytes) -> None:
    """What a server does with an image, of which Pillow warns nobody; what it gives the network are numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare(data, Preprocessing(4), max_pixels=10**6).isfinite().all()


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it finds in damaged files
def test_damaged_images_are_read_or_refused_and_nothing_else(tmp_path):
    count, rng = int(os.environ.get("PIGGYBACK_FUZZ", "600")), np.random.default_rng(0)
    whole = [*KINDS.items(), ("rgb.tiff", encoded(photo(), "TIFF"))]
    read = refused = 0
    for turn in range(count):
        name, data = whole[turn % len(whole)]
        bad = damaged(data, rng)
        path = tmp_path / name
        path.write_bytes(bad)
        for attempt in (
            partial(read_image, path),
            partial(served, bad),
            partial(check_image, path),
            partial(upright_size, path),
        ):
            said = refusal_of(attempt)
            read, refused = read + (said is None), refused + (said is not None)
    sys.stdout.write(f"{read} read, {refused} refused\n")
    assert min(read, refused) > 0


NAMES = (
    "a", "B", "train", "Test", "val", "dev", ".x", "@eaDir", "images", "labels", "Thumbs", "é", "e\u0301", "x y", "-",
    "*",
)  # fmt: skip


def test_odd_trees_are_read_in_order_or_refused(tmp_path):
    count, rng = int(os.environ.get("PIGGYBACK_FUZZ", "300")), np.random.default_rng(0)
    pictures = [encoded(Image.new("L", (4, 4), i), "PNG") for i in range(40)]
    read = refused = 0
    for turn in range(count):
        root = tmp_path / str(turn)
        folders = [root]
        root.mkdir()
        for _ in range(int(rng.integers(2, 12))):
            parent = folders[int(rng.integers(len(folders)))]
            place = parent / NAMES[int(rng.integers(len(NAMES)))]
            if os.path.lexists(place):
                continue
            kind = int(rng.integers(12))
            if kind == 0:
                place.symlink_to(folders[int(rng.integers(len(folders)))])
            elif kind == 1:
                place.symlink_to(root / "nowhere")
            elif kind == 2:
                place.write_bytes(b"x")
            else:
                place.mkdir()
                folders.append(place)
        for folder in folders[1:]:
            for i in rng.integers(40, size=int(rng.integers(0, 6))):
                odd = int(rng.integers(4)) if rng.random() < 0.2 else 0
                suffix = (".png", ".PNG", ".txt", "")[odd]
                (folder / f"{i}{suffix}").write_bytes(pictures[i])
        if refusal_of(partial(load_folder, root)) is not None:
            refused += 1
            continue
        data = load_folder(root)
        read += 1
        assert list(data.classes) == sorted(data.classes)
        for images in data.splits().values():
            assert images.classes == data.classes
            for file, label in zip(images.files, images.labels.tolist(), strict=True):
                parts = [
                    unicodedata.normalize("NFC", part) for part in file.relative_to(root).parts
                ]
                assert unicodedata.normalize("NFC", data.classes[label]) in parts
        shutil.rmtree(root)
    sys.stdout.write(f"{read} read, {refused} refused\n")
    assert min(read, refused) > 0


@pytest.mark.parametrize("images", [None, "ab", [[[1]], [[2, 3]]], {"a": 1}])
def test_images_that_are_none_are_refused_in_one_line(images):
    with pytest.raises(DataError):
        from_tensors("x", ["a", "b"], (images, torch.tensor([0, 1])))


def test_arrays_of_any_layout_are_images():
    drawn = np.random.default_rng(0).integers(0, 255, (20, 3, 8, 8), dtype=np.uint8)
    for given in (drawn[::-1][::-1], np.asfortranarray(drawn), drawn[:, :, ::-1][:, :, ::-1]):
        data = from_tensors("x", ["a", "b"], (given, np.arange(20).astype(">i4") % 2))
        assert sum(len(part) for part in data.splits().values()) == 20


def test_accents_of_images_and_their_label_maps_may_be_written_differently(tmp_path):
    for split in ("train", "test"):
        for i in range(4):
            for kind, name in (("images", "caf\u00e9"), ("labels", "cafe\u0301")):
                place = tmp_path / split / kind / f"{name}{i}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (6, 6), i).save(place)
    data = load_camvid_layout(tmp_path)
    assert len(data.train) + len(data.val) == 4
