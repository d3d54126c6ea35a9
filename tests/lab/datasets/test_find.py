"""Where sets are looked for, what is said when they are missing or differ, and fetching."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torchvision import datasets as torchvision_sets

from piggyback.errors import DataError, PiggybackWarning
from piggyback.lab.datasets import DATASETS, dataset, default_roots, find, load, locate, missing
from piggyback.lab.datasets.find import differences
from piggyback.train import ImageData, ImageSet
from support import toy_sets


def data_of(classes: int, *, cut: tuple[str, ...], **counts: int) -> ImageData:
    """A set with so many images by split, on no disk."""
    names = tuple(str(number) for number in range(classes))
    sets = {
        split: ImageSet(names, torch.arange(n) % classes, files=(Path("x.jpg"),) * n)
        for split, n in counts.items()
    }
    return ImageData("x", sets["train"], sets["val"], sets["test"], cut=cut)


def test_roots_come_from_the_environment_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_roots() == [Path("data"), Path("../shared/data")]
    monkeypatch.setenv("PIGGYBACK_DATA", os.pathsep.join(["one", "two"]))
    assert default_roots()[:2] == [Path("one"), Path("two")]


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it(name: str) -> None:
    info = dataset(name)
    with pytest.raises(DataError) as caught:
        load(name, [Path("first"), Path("second")])
    text = str(caught.value)
    assert text == missing(name, [Path("first"), Path("second")])
    assert "\n" not in text
    for part in (repr(name), "first, second", info.how_to_get, info.layout, "PIGGYBACK_DATA"):
        assert part in text


def test_unknown_names_bring_near_misses() -> None:
    with pytest.raises(DataError, match=r"'cub' is not known; did you mean 'cubs'"):
        dataset("cub")


def test_a_set_is_found_under_its_own_name_or_its_archives(root: Path) -> None:
    assert find("cubs", [root]) is None
    (root / "CUB_200_2011").mkdir(parents=True)
    assert find("cubs", [root / "none", root]) == root / "CUB_200_2011"
    (root / "cubs").mkdir()
    assert find("cubs", [root]) == root / "cubs"


def test_of_sets_that_share_a_folder_each_is_found_where_its_part_is(root: Path) -> None:
    toy_sets.decathlon(root / "decathlon-1.0", "svhn")
    assert find("decathlon-svhn", [root]) == root / "decathlon-1.0"
    assert find("decathlon-imagenet12", [root]) is None
    assert "looked for decathlon-1.0/data/imagenet12/" in missing("decathlon-imagenet12", [root])


def test_counts_that_differ_are_told_with_both_numbers(root: Path) -> None:
    toy_sets.cubs(root / "cubs")
    with pytest.warns(PiggybackWarning) as caught:
        data = load("cubs", [root])
    assert len(data.test) == 2
    text = str(caught[0].message)
    for part in (
        "2 classes, published 200",
        "8 train images, published 5994",
        "2 test images, published 5794",
    ):
        assert part in text
    assert "val" not in text
    assert caught[0].filename == __file__


def test_published_counts_are_no_news() -> None:
    counts = {"train": 3000, "val": 770, "test": 2500}
    assert differences(dataset("gtsrb"), data_of(43, cut=("val 0.1",), **counts)) == ""
    counts = {"train": 367, "val": 101, "test": 233}
    assert differences(dataset("camvid"), data_of(11, cut=(), **counts)) == ""


def test_the_decathlons_val_is_compared_with_val_while_it_stands_in_for_test() -> None:
    info = dataset("decathlon-ucf101")
    withheld = data_of(101, cut=("val 0.1",), train=7000, val=585, test=1952)
    assert differences(info, withheld) == ""
    labelled = data_of(101, cut=(), train=7585, val=1952, test=3783)
    assert differences(info, labelled) == ""
    wrong = data_of(101, cut=(), train=7585, val=1952, test=1952)
    assert differences(info, wrong) == "1952 test images, published 3783"


def test_what_torchvision_can_fetch_is_fetched_to_the_first_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_sets, "DTD", lambda place, download: toy_sets.textures(place))
    with pytest.raises(DataError, match="is missing"):
        load("textures", [root])
    with pytest.warns(PiggybackWarning, match="4 train images, published 1880"):
        load("textures", [root], download=True)
    monkeypatch.setattr(torchvision_sets, "DTD", None)
    with pytest.warns(PiggybackWarning):  # it is there now, so nothing is fetched
        load("textures", [root], download=True)


def test_all_that_torchvision_is_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for module in ("whole_domains", "flowers"):
        monkeypatch.setattr(
            f"piggyback.lab.datasets.{module}.download_url",
            lambda url, place, name, md5: asked.append((url, place.name, name)),
        )
    monkeypatch.setattr(
        "piggyback.lab.datasets.flowers.download_and_extract_archive",
        lambda url, place, md5: asked.append((url, place.name)),
    )
    for name in ("Places365", "VOCSegmentation", "FGVCAircraft", "DTD"):
        monkeypatch.setattr(
            torchvision_sets,
            name,
            lambda place, _name=name, **options: asked.append((_name, place.name, options)),
        )
    for name in ("places365", "voc-segmentation", "aircraft", "textures", "svhn", "flowers"):
        fetch = dataset(name).download
        assert fetch is not None
        fetch(root)
    small = {"small": True, "download": True}
    flowers = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    assert asked == [
        ("Places365", "places365", {"split": "train-standard", **small}),
        ("Places365", "places365", {"split": "val", **small}),
        ("VOCSegmentation", "voc-segmentation", {"year": "2012", "download": True}),
        ("FGVCAircraft", "aircraft", {"split": "train", "download": True}),
        ("DTD", "textures", {"download": True}),
        *(
            (
                f"http://ufldl.stanford.edu/housenumbers/{part}_32x32.mat",
                "svhn",
                f"{part}_32x32.mat",
            )
            for part in ("train", "test")
        ),
        (f"{flowers}102flowers.tgz", "flowers-102"),
        (f"{flowers}imagelabels.mat", "flowers-102", "imagelabels.mat"),
        (f"{flowers}setid.mat", "flowers-102", "setid.mat"),
    ]


def test_a_download_that_fails_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(place: Path, *, download: bool) -> None:
        raise RuntimeError("File not found\nor corrupted")

    monkeypatch.setattr(torchvision_sets, "DTD", fetch)
    with pytest.raises(
        DataError, match=r"'textures': the download to .* failed \(File not found or"
    ):
        load("textures", [root], download=True)


def test_what_cannot_be_fetched_says_how_to_get_it(root: Path) -> None:
    with pytest.raises(DataError, match=r"'cubs' cannot be downloaded: get CUB_200_2011\.tgz"):
        load("cubs", [root], download=True)


def test_looking_does_not_unpack(root: Path) -> None:
    root.mkdir()
    (root / "gtsrb.tar").write_bytes(b"not looked into")
    assert locate("gtsrb", [root]) == root / "gtsrb.tar"
    assert [p.name for p in root.iterdir()] == ["gtsrb.tar"]


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name",
    [
        "dtd",
        "camvid",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gtsrb", "cifar10")),
    ],
)
def test_the_real_reduced_sets_have_the_published_counts(name: str) -> None:
    shared = Path(__file__).resolve().parents[4] / "shared" / "data"
    if not (shared / f"{name}.tar").is_file():
        pytest.skip("needs the image sets in ../shared/data")
    data = load(name, [shared])  # a PiggybackWarning would be an error
    assert len(data.classes) == dataset(name).classes
    assert not (shared / name).exists()
