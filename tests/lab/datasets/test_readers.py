"""Every registered set, made up in its publisher's layout: what is read, and what is refused by name."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from piggyback.errors import DataError, MissingExtraError, PiggybackWarning
from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.datasets import DATASETS, dataset
from piggyback.lab.datasets.lists import whole_numbers
from piggyback.train import ImageData
from support import toy_sets

VIEW = Preprocessing(8)


def made(name: str, root: Path) -> Path:
    """The folder of a toy set."""
    folder = root / dataset(name).places[0]
    toy_sets.MAKERS[name](folder)
    return folder


def read(name: str, folder: Path) -> ImageData:
    return dataset(name).read(folder)


def test_there_is_a_toy_of_every_registered_set():
    assert set(toy_sets.MAKERS) == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_every_registered_set_is_read(name, root):
    info = dataset(name)
    data = read(name, made(name, root))
    train, val, test = toy_sets.COUNTS.get(name, (12, 0, 6))
    assert data.name == name
    assert len(data.test) == test
    if val:
        assert (data.cut, len(data.train), len(data.val)) == ((), train, val)
    else:
        assert [str(each) for each in data.cut] == ["val 0.1"]
        assert len(data.train) + len(data.val) == train
    files = [set(images.files) for images in data.splits().values()]
    assert len(set.union(*files)) == sum(map(len, files))
    if info.kind == "classification":
        image = data.train.load(0, VIEW)
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 8, 8))


@pytest.mark.parametrize("name", ["cubs", "cars"])
def test_cropped_sets_show_what_is_in_the_box_only(name, root):
    data = read(name, made(name, root))
    left, top, right, bottom = toy_sets.BOX
    assert data.test.boxes.tolist() == [[left, top, right, bottom]] * 2
    for images in (data.train, data.test, data.test.in_memory(VIEW)):
        red, green, _ = images.load(0, Preprocessing(4))[:, 1:3, 1:3].float().mean((1, 2)).tolist()
        assert green > 180
        assert red < 60


def test_the_decathlon_measures_val_until_test_has_labels(root):
    folder = root / "decathlon-1.0"
    toy_sets.decathlon(folder, "svhn")
    before = read("decathlon-svhn", folder)
    assert {file.parts[-3] for file in before.test.files} == {"val"}
    assert {file.parts[-3] for file in before.val.files} == {"train"}
    toy_sets.decathlon(folder, "svhn", ("train", "val", "test"))
    after = read("decathlon-svhn", folder)
    assert after.cut == ()
    assert {split: {file.parts[-3] for file in images.files} for split, images in after.splits().items()} == {
        split: {split} for split in ("train", "val", "test")
    }  # fmt: skip
    assert after.classes == ("svhn-0", "svhn-1")


def test_categories_that_share_a_name_stay_apart(root):
    folder = made("decathlon-imagenet12", root)
    for place in (folder / "annotations").iterdir():
        held = json.loads(place.read_text())
        for row in held["categories"]:
            row["name"] = "crane"
        place.write_text(json.dumps(held))
    assert read("decathlon-imagenet12", folder).classes == ("crane (50)", "crane (51)")


def test_flowers_train_on_what_was_published_as_train_and_val(root):
    data = read("flowers", made("flowers", root))
    numbers = {int(f.stem[6:]) for split in (data.train, data.val) for f in split.files}
    assert numbers == set(range(1, 205))
    assert {int(f.stem[6:]) for f in data.test.files} == set(range(205, 307))
    assert data.test.labels[0] == 0
    assert data.test.files[0].name == "image_00205.jpg"


def test_places_reads_its_archive_before_and_after_torchvision_renamed_it(root):
    folder = made("places365", root)
    first = read("places365", folder)
    assert first.classes == ("a/airfield", "b/bar/indoor")
    digest = first.train.digest()
    (folder / "data_256_standard").rename(folder / "data_256")
    assert read("places365", folder).train.digest() == digest


def test_labels_of_cars_may_lie_in_the_devkit(root):
    folder = made("cars", root)
    place = folder / "cars_test_annos_withlabels.mat"
    place.rename(folder / "devkit" / place.name)
    assert len(read("cars", folder).test) == 2


def test_house_numbers_are_upright_and_ten_is_zero(root):
    data = read("svhn", made("svhn", root))
    assert data.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert data.test.images[:, 0, 1, 2].tolist() == [*range(101, 111)]
    assert int((data.test.images > 0).sum()) == 10


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_folder_is_refused_by_name(name, root):
    root.mkdir()
    with pytest.raises(DataError, match=re.escape(str(root))) as caught:
        read(name, root)
    assert "\n" not in str(caught.value)


def train_image(folder: Path) -> Path:
    """One image of the toy's train split."""
    images = [file.relative_to(folder) for file in sorted(folder.rglob("*.jpg"))]
    return folder / next(f for f in images if "test" not in str(f) and "val" not in str(f))


PICTURES = [n for n in DATASETS if dataset(n).kind == "classification" and n != "svhn"]
LISTED = [n for n in PICTURES if n in toy_sets.COUNTS]


@pytest.mark.parametrize("name", LISTED)
def test_a_listed_file_that_is_not_there_is_named_with_its_list(name, root):
    folder = made(name, root)
    gone = train_image(folder)
    gone.unlink()
    with pytest.raises(DataError, match=rf"{gone.name}.*no such file.*\(listed in "):
        read(name, folder)


@pytest.mark.parametrize("name", PICTURES)
def test_a_truncated_image_is_named_before_training(name, root):
    folder = made(name, root)
    torn = train_image(folder)
    torn.write_bytes(torn.read_bytes()[:200])
    with pytest.raises(DataError, match=torn.name):
        read(name, folder)


BIRDS, VARIANTS = "001.Crow/Crow_0001.jpg", "fgvc-aircraft-2013b/data/variants.txt"


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("cubs", "images.txt", f"1 {BIRDS}", "1", r"images\.txt, line 1: .*expected 2 columns"),
        ("cubs", "images.txt", f"1 {BIRDS}", "1 ../x.jpg", r"'\.\./x\.jpg': expected a path"),
        ("cubs", "image_class_labels.txt", "1 1\n", "1 9\n", "class '9' is not one of the 2"),
        ("cubs", "images.txt", "2 001.", "1 001.", r"images\.txt: .*'1' is there twice"),
        ("cubs", "train_test_split.txt", "1 1\n", "1 2\n", "part '2'"),
        (
            "places365",
            "categories_places365.txt",
            " 0\n",
            " 7\n",
            "365.txt: .*each number from 0 to 1",
        ),
        ("cubs", "image_class_labels.txt", "1 1\n", "", "images.txt: .*says nothing about '1'"),
        ("cubs", "bounding_boxes.txt", "1 4.0 5.0", "1 4.0 five", "images.txt: .*'five'"),
        ("cubs", "bounding_boxes.txt", "1 4.0 5.0", "1 nan 5.0", "images.txt: .*NaN"),
        ("cubs", "bounding_boxes.txt", "1 4.0 5.0", "1 400.0 5.0", "_0001.jpg.*none of its 24 x"),
        ("cubs", "bounding_boxes.txt", "1 4.0 5.0", "1 4.0 1e99", "_0001.jpg.*none of its 24 x"),
        ("places365", "categories_places365.txt", " 0\n", " zero\n", "365.txt: .*'zero'"),
        ("places365", "places365_val.txt", "0.jpg 0", "0.jpg 9", "label 9.*expected 0 to 1"),
        ("places365", "places365_val.txt", "0.jpg 0", "0.jpg", r"val\.txt, line 1.*2 columns"),
        ("places365", "places365_train_standard.txt", "/a/", "/../", "expected a path inside"),
        ("aircraft", VARIANTS, "Typhoon B", "Typhoon", "class 'Eurofighter Typhoon B' is not one"),
        ("textures", "dtd/dtd/labels/test1.txt", "banded/", "odd/", r"test1\.txt: class 'odd' is"),
    ],
)
def test_malformed_lists(name, root, file, old, new, message):
    folder = made(name, root)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message) as caught:
        read(name, folder)
    assert "\n" not in str(caught.value)


def test_a_box_that_reaches_out_of_the_image_is_clipped(root):
    folder = made("cubs", root)
    place = folder / "bounding_boxes.txt"
    place.write_text(place.read_text().replace("4.0 5.0 12.0 10.0", "-4.0 5.0 99.0 10.0"))
    image = read("cubs", folder).test.load(0, Preprocessing(24)).float()
    assert image[0, :, :3].mean() > 180  # red again at the left edge


# -- MATLAB files ------------------------------------------------------------------------------------


def test_without_scipy_the_extra_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingExtraError, match=r"\.\[data\]"):
        read("cars", made("cars", root))


@pytest.mark.parametrize("compressed", [False, True])
def test_every_cut_of_a_matlab_file_is_found(tmp_path, compressed):
    place = tmp_path / "a.mat"
    savemat(place, {"x": np.arange(9.0)}, do_compression=compressed)
    assert whole_numbers(place, "x") == [*range(9)]
    data = place.read_bytes()
    for end in range(len(data)):
        place.write_bytes(data[:end])
        with pytest.raises(DataError, match=r"a\.mat") as caught:
            whole_numbers(place, "x")
        assert "\n" not in str(caught.value)


def test_damage_to_a_compressed_matlab_file_is_found(root):
    folder = made("cars", root)
    place = folder / "devkit" / "cars_train_annos.mat"
    savemat(place, {"annotations": loadmat(place)["annotations"]}, do_compression=True)
    read("cars", folder)
    data = place.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(136, len(data), 40):  # behind the header, whose text may be anything
        broken = bytearray(data)
        broken[at] ^= rng.integers(1, 256)
        place.write_bytes(bytes(broken))
        with pytest.raises(DataError, match=r"cars_train_annos\.mat"):
            read("cars", folder)


def car(label: object, file: str = "00001.jpg", left: object = 5) -> dict[str, object]:
    row = np.array([(left, 6, 100, 15, label, file)], dtype=toy_sets.CAR)
    return {"annotations": row}


@pytest.mark.parametrize(
    ("name", "file", "values", "message"),
    [
        ("cars", "devkit/cars_train_annos.mat", car(3), r"00001\.jpg has label 2, .*0 to 1"),
        ("cars", "devkit/cars_train_annos.mat", car(0), r"00001\.jpg has label -1"),
        ("cars", "devkit/cars_train_annos.mat", car("a"), r"annos\.mat: .*'a'"),
        ("cars", "devkit/cars_train_annos.mat", car(1.5), r"annos\.mat: .*1\.5.* no whole number"),
        ("flowers", "setid.mat", {"trnid": [0, 1]}, r"setid\.mat: .*image 0 is out of range"),
        ("flowers", "setid.mat", {"trnid": [1, 2.5]}, r"setid\.mat: .*2\.5 is no whole number"),
        ("cars", "devkit/cars_train_annos.mat", car(1, "/etc/hosts"), "expected a path inside"),
        ("cars", "devkit/cars_train_annos.mat", car(1, left=99), "1.jpg.*none of its 24.*listed in"),
        ("cars", "cars_test_annos_withlabels.mat", {"annotations": [1]}, r"withlabels\.mat: "),
        ("flowers", "setid.mat", {"trnid": [1, 9999]}, r"setid\.mat: .*out of range"),
        ("flowers", "setid.mat", {"trnid": ["a", "b"]}, r"setid\.mat: .*'a'"),
        ("flowers", "setid.mat", {"other": [1]}, "says nothing about 'trnid'"),
        ("flowers", "imagelabels.mat", {"labels": np.full(306, 103)}, "1.jpg has label 102.*0 to 101"),
        ("svhn", "test_32x32.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [1]}, "each of 1 labels"),
        ("svhn", "test_32x32.mat", {"X": np.zeros((32, 32, 3, 1)), "y": [1]}, "32 x 32 x 3 bytes"),
        ("svhn", "test_32x32.mat", {"X": np.zeros((32, 32, 3, 1), np.uint8), "y": [11]}, "from 1 to 10"),
    ],
)  # fmt: skip
def test_malformed_matlab_variables(name, file, values, message, root):
    folder = made(name, root)
    savemat(folder / file, {"valid": [1], "tstid": [1], **values})
    with pytest.raises(DataError, match=message):
        read(name, folder)


@pytest.mark.parametrize(
    ("key", "row", "message"),
    [
        ("annotations", {"image_id": 0, "category_id": 99}, "says nothing about 99"),
        ("annotations", {"image_id": 77, "category_id": 50}, "says nothing about 0"),
        ("annotations", {"image_id": "zero", "category_id": 50}, r"annotations\.0\.image_id"),
        ("annotations", None, r"annotations\.0"),
        ("annotations", {"image_id": 1, "category_id": 50}, "1 is there twice"),
        ("images", {"id": 1, "file_name": "data/x.jpg"}, "1 is there twice"),
        ("categories", {"id": 51, "name": "a"}, "51 is there twice"),
        ("images", {"id": 0, "file_name": "../x.jpg"}, r"'\.\./x\.jpg': expected a path inside"),
        ("", None, "cannot be read"),
    ],
)
def test_malformed_annotations_of_the_decathlon(root, key, row, message):
    folder = made("decathlon-dtd", root)
    place = folder / "annotations" / "dtd_train.json"
    held = json.loads(place.read_text())
    if key:
        held[key][0] = row
    place.write_text(json.dumps(held) if key else "[" * 100000)
    with pytest.raises(DataError, match=rf"dtd_train\.json: .*{message}") as caught:
        read("decathlon-dtd", folder)
    assert "\n" not in str(caught.value)


def test_test_is_never_cut_from_train(root):
    folder = made("wikiart", root)
    (folder / "test").rename(folder / "elsewhere")
    with pytest.raises(DataError, match=r"wikiart/test': no such directory"):
        read("wikiart", folder)


def test_images_outside_the_lists_are_left_alone(root):
    folder = made("cubs", root)
    Image.new("RGB", (4, 4)).save(folder / "images" / "001.Crow" / "mine.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error", PiggybackWarning)
        assert len(read("cubs", folder).test) == 2
