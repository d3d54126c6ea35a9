"""Segmentation sets: reading both layouts, and one line for everything that is wrong with a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piggyback.errors import DataError
from piggyback.images.label_maps import VOID, SegmentationSet, read_map
from piggyback.images.map_pictures import CAMVID
from piggyback.images.preprocessing import Preprocessing
from piggyback.train.data.segmentation import (
    VOC,
    is_segmentation_folder,
    load_camvid_layout,
    load_segmentation_split,
    load_voc,
)


def write(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)


def pair(folder: Path, name: str, seed: int, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    """An image and its label map, classes 0 to 10 and 11 for void; returns the map."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 12, size, dtype=np.uint8)
    write(folder / "images" / f"{name}.jpg", rng.integers(0, 255, (*size, 3), dtype=np.uint8))
    write(folder / "labels" / f"{name}.png", labels)
    return labels


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    root = tmp_path / "streets"
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for i in range(count):
            pair(root / split, f"{split}{i}", seed=i)
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3)):
        names = [f"2007_{split}{i}" for i in range(count)]
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            size = (10, 12)
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            write(root / "JPEGImages" / f"{name}.jpg", pixels)
            labels = rng.integers(0, 21, size, dtype=np.uint8)
            labels[0] = 255
            image = Image.fromarray(labels)
            image.putpalette([i % 256 for i in range(768)])
            (root / "SegmentationClass").mkdir(exist_ok=True)
            image.save(root / "SegmentationClass" / f"{name}.png")
    return tmp_path


def test_the_three_splits_of_camvid_s_layout(streets):
    data = load_camvid_layout(streets, "camvid")
    assert (data.name, data.kind, data.classes) == ("camvid", "segmentation", CAMVID)
    assert [len(part) for part in data.splits().values()] == [4, 2, 3]
    labels = np.array(Image.open(streets / "train" / "labels" / "train2.png"))
    expected = np.where(labels == 11, VOID, labels)
    assert (labels == 11).any()
    assert np.array_equal(data.train.whole_map(2).numpy(), expected)


def test_val_is_cut_from_train_where_there_is_none(streets):
    for file in (streets / "val").rglob("*.*"):
        file.unlink()
    for name in ("val/images", "val/labels", "val"):
        (streets / name).rmdir()
    data = load_camvid_layout(streets, val_fraction=0.25, seed=3)
    assert len(data.train) + len(data.val) == 4
    assert len(data.val) in (1, 2)
    assert len(data.test) == 3
    assert [str(each) for each in data.cut] == ["val 0.25"]
    again = load_camvid_layout(streets, val_fraction=0.25, seed=3)
    assert data.val.files == again.val.files
    assert not set(data.val.files) & set(data.train.files)


def test_voc_s_val_list_is_test_and_void_is_255(voc):
    for root in (voc, voc / "VOCdevkit" / "VOC2012"):
        data = load_voc(root, val_fraction=0.2)
        assert data.classes == VOC
        assert len(data.train) + len(data.val) == 10
        assert len(data.test) == 3
        assert all("val" in file.name for file in data.test.files)
        assert (data.test.whole_map(0)[0] == VOID).all()
        assert int(data.test.whole_map(0)[1:].max()) <= 20


def test_classes_from_a_file_beside_the_splits(streets):
    (streets / "classes.txt").write_text("\n".join(f"c{i}" for i in range(12)) + "\n")
    data = load_camvid_layout(streets)
    assert data.classes == tuple(f"c{i}" for i in range(12))
    labels = np.array(Image.open(streets / "train" / "labels" / "train2.png"))
    assert np.array_equal(data.train.whole_map(2).numpy(), labels)  # 11 is a class, void is 255
    assert load_segmentation_split(streets / "test").classes == data.classes
    (streets / "classes.txt").write_text("a\na\n")
    with pytest.raises(DataError, match="one class name per line, each once"):
        load_camvid_layout(streets)


def test_maps_are_cut_and_resized_as_their_images_are():
    # Classes are drawn into the image's brightness, so image and map can be compared after resizing.
    blocks = np.kron(np.arange(6).reshape(2, 3), np.ones((20, 20), dtype=int)).astype(np.uint8)
    images = torch.from_numpy(blocks * 40)[None, None].expand(1, 3, -1, -1).contiguous()
    held = SegmentationSet(tuple("abcdef"), images, torch.from_numpy(blocks)[None])
    for crop_pct in (1.0, 0.5):
        preprocessing = Preprocessing(12, interpolation="nearest", crop_pct=crop_pct)
        image, labels = held.load(0, preprocessing), held.load_map(0, preprocessing)
        assert image.shape == (3, 12, 12)
        assert labels.shape == (12, 12)
        assert torch.equal(image[0], labels * 40)
        ready = held.in_memory(preprocessing)
        assert torch.equal(ready.maps[0], labels)
        assert torch.equal(ready.images[0], image)
    assert set(
        held.load_map(0, Preprocessing(12, interpolation="bicubic")).unique().tolist()
    ) == set(range(6))


def test_in_memory_and_from_files_are_the_same(streets):
    files = load_segmentation_split(streets / "train")
    preprocessing = Preprocessing(8)
    ready = files.in_memory(preprocessing)
    assert ready.images is not None
    assert files.images is None
    for i in range(4):
        assert torch.equal(ready.load(i, preprocessing), files.load(i, preprocessing))
        assert torch.equal(ready.load_map(i, preprocessing), files.load_map(i, preprocessing))
    part = files.subset(torch.tensor([2, 0]))
    assert [file.stem for file in (*part.files, *part.map_files)] == ["train2", "train0"] * 2
    assert torch.equal(ready.subset(torch.tensor([2])).maps[0], ready.maps[2])
    assert ready.in_memory(preprocessing) is ready


def test_the_digest_tells_sets_apart(streets):
    files = load_segmentation_split(streets / "train")
    ready = files.in_memory(Preprocessing(8))
    other = ready.maps.clone()
    other[0, 0, 0] = (int(other[0, 0, 0]) + 1) % 11
    changed = SegmentationSet(ready.classes, ready.images, other)
    digests = {files.digest(), files.subset(torch.tensor([0, 1])).digest(), ready.digest()}
    assert len({*digests, changed.digest()}) == 4
    assert load_segmentation_split(streets / "train").digest() == files.digest()


def test_counts_are_images_that_show_a_class():
    maps = torch.tensor([[[0, 0], [1, VOID]], [[0, VOID], [0, 0]]], dtype=torch.uint8)
    held = SegmentationSet(("a", "b", "c"), torch.zeros(2, 3, 2, 2, dtype=torch.uint8), maps)
    assert held.counts() == [2, 1, 0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "train1.jpg' has no label map"),
        (
            lambda path: write(path, np.zeros((12, 15), dtype=np.uint8)),
            "train1.png' is 15 x 12 pixels: expected 16 x 12",
        ),
        (
            lambda path: write(path, np.full((12, 16), 37, dtype=np.uint8)),
            "train1.png': value 37 found: expected 0 to 10",
        ),
        (
            lambda path: write(path, np.zeros((12, 16, 3), dtype=np.uint8)),
            "train1.png' has pixels of mode 'RGB'",
        ),
        (cut, "train1.png"),
        (lambda path: cut(path.parents[1] / "images" / "train1.jpg"), "train1.jpg"),
    ],
    ids=["missing", "size", "value", "colour", "cut map", "cut image"],
)
def test_a_label_map_or_image_that_does_not_fit(streets, change, message):
    change(streets / "train" / "labels" / "train1.png")
    with pytest.raises(DataError) as caught:
        load_camvid_layout(streets).in_memory(Preprocessing(8), Preprocessing(8))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_turned_photograph_is_compared_upright(streets):
    image = Image.open(streets / "train" / "images" / "train1.jpg")
    exif = image.getexif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(streets / "train" / "images" / "train1.jpg", exif=exif)
    held = load_camvid_layout(streets).train
    assert held.load(1, Preprocessing(8)).shape == (3, 8, 8)


def test_folders_that_are_missing_or_empty(streets, voc, tmp_path):
    with pytest.raises(DataError, match=r"no train/images in it: expected train/images/NAME\.jpg"):
        load_camvid_layout(tmp_path)
    with pytest.raises(DataError, match="expected VOCdevkit/VOC2012"):
        load_voc(streets)
    for file in (streets / "test" / "images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="holds no images"):
        load_camvid_layout(streets)
    (voc / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_val1.png").unlink()
    with pytest.raises(DataError, match=r"2007_val1\.jpg' has no label map"):
        load_voc(voc)


def test_tensors_that_do_not_fit():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    maps = torch.zeros(2, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"expected uint8 \(2, 4, 4\), the images' size"):
        SegmentationSet(("a", "b"), images, maps[:, :3])
    with pytest.raises(DataError, match="label maps none"):
        SegmentationSet(("a", "b"), images)
    with pytest.raises(DataError, match="value 2 found: expected 0 to 1"):
        SegmentationSet(("a", "b"), images, maps + 2)
    with pytest.raises(DataError, match="expected one for each image"):
        SegmentationSet(("a", "b"), files=(Path("a.jpg"),))
    with pytest.raises(DataError, match="256 classes"):
        SegmentationSet(tuple(map(str, range(256))), images, maps)
    with pytest.raises(DataError, match="no such file"):
        read_map(Path("nowhere.png"), ("a",))


def test_which_folders_are_for_segmentation(streets, tmp_path):
    assert is_segmentation_folder(streets)
    assert is_segmentation_folder(streets / "test")
    (tmp_path / "pets" / "train" / "cat").mkdir(parents=True)
    assert not is_segmentation_folder(tmp_path / "pets")
