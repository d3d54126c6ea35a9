"""The registry and its page; where sets are looked for, what is said of missing ones, unpacking and fetching."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import torch
from torchvision import datasets as torchvision_sets

from piggyback.errors import DataError, PiggybackWarning
from piggyback.lab.datasets import (
    DATASETS,
    DatasetInfo,
    dataset,
    default_roots,
    find,
    load,
    locate,
    missing,
)
from piggyback.lab.datasets.find import differences
from piggyback.train import ImageData, ImageSet
from support import toy_sets

PAGE = Path(__file__).resolve().parents[3] / "docs" / "DATA.md"
HEADER = [
    "| set | what | kind | classes | train | val | test | prepared | folder, and what lies in it | get | licence |",
    "|---|---|---|---:|---:|---:|---:|---|---|---|---|",
]


def row(info: DatasetInfo) -> str:
    """The page's line about a set."""
    counts = [f"{info.counts[s]:,}" if s in info.counts else "" for s in ("train", "val", "test")]
    prepared = (
        f"{info.image_size} pixels, crop {info.crop_pct:.3g}, {'flip' if info.flip else 'no flip'}"
    )
    folders = " or ".join(f"`{place}/`" for place in info.places)
    cells = [
        *(f"`{info.name}`", info.title, info.kind, f"{info.classes:,}", *counts, prepared),
        *(f"{folders}: `{info.layout}`", info.how_to_get, info.licence),
    ]
    assert not any("|" in cell or "\n" in cell for cell in cells)
    return f"| {' | '.join(cells)} |"


def test_the_pages_table_is_the_registry():
    _, _, table = PAGE.read_text(encoding="utf-8").partition("\n## The sets\n")
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert lines == [*HEADER, *map(row, DATASETS.values())]


# -- looking -----------------------------------------------------------------------------------------


def test_roots_come_from_the_environment_first(monkeypatch):
    assert default_roots() == [Path("data"), Path("../shared/data")]
    monkeypatch.setenv("PIGGYBACK_DATA", os.pathsep.join(["one", "two"]))
    assert default_roots()[:2] == [Path("one"), Path("two")]


def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it():
    for name, info in DATASETS.items():
        with pytest.raises(DataError) as caught:
            load(name, [Path("first"), Path("second")])
        text = str(caught.value)
        assert "\n" not in text
        for part in (repr(name), "first, second", info.how_to_get, info.layout, "PIGGYBACK_DATA"):
            assert part in text


def test_a_set_is_found_under_its_own_name_its_archives_or_its_part(root):
    assert find("cubs", [root]) is None
    (root / "CUB_200_2011").mkdir(parents=True)
    assert find("cubs", [root / "none", root]) == root / "CUB_200_2011"
    (root / "cubs").mkdir()
    assert find("cubs", [root]) == root / "cubs"
    toy_sets.decathlon(root / "decathlon-1.0", "svhn")
    assert find("decathlon-svhn", [root]) == root / "decathlon-1.0"
    assert find("decathlon-imagenet12", [root]) is None
    assert "looked for decathlon-1.0/data/imagenet12/" in missing("decathlon-imagenet12", [root])


# -- counts ------------------------------------------------------------------------------------------


def data_of(classes: int, *, cut: tuple[str, ...], **counts: int) -> ImageData:
    """A set with so many images by split, on no disk."""
    names = tuple(str(number) for number in range(classes))
    sets = {
        split: ImageSet(names, torch.arange(n) % classes, files=(Path("x.jpg"),) * n)
        for split, n in counts.items()
    }
    return ImageData("x", sets["train"], sets["val"], sets["test"], cut=cut)


def test_counts_that_differ_are_told_with_both_numbers(root):
    toy_sets.cubs(root / "cubs")
    with pytest.warns(PiggybackWarning) as caught:
        data = load("cubs", [root])
    assert len(data.test) == 2
    text = str(caught[0].message)
    for part in ("2 classes, published 200", "8 train images, published 5994", "2 test images"):
        assert part in text
    assert "val" not in text
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("name", "classes", "cut", "counts", "told"),
    [
        ("gtsrb", 43, ("val 0.1",), (3000, 770, 2500), ""),
        ("camvid", 11, (), (367, 101, 233), ""),
        # The Decathlon's val stands in for test while the labels of test are withheld.
        ("decathlon-ucf101", 101, ("val 0.1",), (7000, 585, 1952), ""),
        ("decathlon-ucf101", 101, (), (7585, 1952, 3783), ""),
        ("decathlon-ucf101", 101, (), (7585, 1952, 1952), "1952 test images, published 3783"),
    ],
)
def test_what_counts_as_a_difference(name, classes, cut, counts, told):
    splits = dict(zip(("train", "val", "test"), counts, strict=True))
    assert differences(dataset(name), data_of(classes, cut=cut, **splits)) == told


# -- fetching ----------------------------------------------------------------------------------------


def test_what_torchvision_can_fetch_is_fetched_to_the_first_folder(root, monkeypatch):
    monkeypatch.setattr(torchvision_sets, "DTD", lambda place, download: toy_sets.textures(place))
    with pytest.raises(DataError, match="is missing"):
        load("textures", [root])
    with pytest.warns(PiggybackWarning, match="4 train images, published 1880"):
        load("textures", [root], download=True)
    monkeypatch.setattr(torchvision_sets, "DTD", None)
    with pytest.warns(PiggybackWarning):  # it is there now, so nothing is fetched
        load("textures", [root], download=True)


def test_all_that_torchvision_is_asked_for(root, monkeypatch):
    asked: list[tuple[object, ...]] = []

    def stand_in(name: str) -> None:
        def fetch(place: Path, *, download: bool, **options: object) -> None:
            asked.append((name, place, *options.values()))

        monkeypatch.setattr(torchvision_sets, name, fetch)

    for name in ("Places365", "VOCSegmentation", "FGVCAircraft", "DTD", "SVHN", "Flowers102"):
        stand_in(name)
    for info in DATASETS.values():
        if info.download is not None:
            info.download(root)
    assert asked == [
        ("Flowers102", root),
        ("Places365", root / "places365", "train-standard", True),
        ("Places365", root / "places365", "val", True),
        ("FGVCAircraft", root / "aircraft", "train"),
        ("DTD", root / "textures"),
        *(("SVHN", root / "svhn", split) for split in ("train", "test")),
        ("VOCSegmentation", root / "voc-segmentation", "2012"),
    ]


def test_a_download_that_fails_or_does_not_exist_is_one_line(root, monkeypatch):
    def fetch(place: Path, *, download: bool) -> None:
        raise RuntimeError("File not found\nor corrupted")

    monkeypatch.setattr(torchvision_sets, "DTD", fetch)
    with pytest.raises(DataError, match=r"'textures'.*\(File not found or"):
        load("textures", [root], download=True)
    with pytest.raises(DataError, match=r"'cubs' cannot be downloaded: get CUB_200_2011\.tgz"):
        load("cubs", [root], download=True)


# -- archives: unpacked once, whole or not at all, never outside their folder ---------------------------


def pack(root: Path, name: str, members: list[tuple[str, bytes | tarfile.TarInfo]]) -> Path:
    """Write ``<root>/<name>.tar`` of files by name, or of members as they are."""
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / f"{name}.tar", "w") as archive:
        for path, content in members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return root / f"{name}.tar"


def special(name: str, kind: bytes, link: str = "") -> tuple[str, tarfile.TarInfo]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return name, member


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("top", ["gtsrb/", ""])
def test_it_is_unpacked_beside_the_archive_once(root, top):
    packed = pack(root, "gtsrb", [(f"{top}train/a/1.jpg", b"one"), (f"{top}test/a/2.jpg", b"two")])
    assert locate("gtsrb", [root]) == packed  # looking does not unpack
    assert find("gtsrb", [root]) == root / "gtsrb"
    assert (root / "gtsrb" / "train" / "a" / "1.jpg").read_bytes() == b"one"
    assert sorted(p.name for p in root.iterdir()) == ["gtsrb", "gtsrb.tar"]
    packed.unlink()
    assert find("gtsrb", [root]) == root / "gtsrb"


def test_it_goes_to_the_cache_where_the_folder_is_read_only(root, tmp_path):
    packed = pack(root, "dtd", [("dtd/train/a/1.jpg", b"one")])
    root.chmod(0o555)  # not written to even by root
    try:
        place = find("dtd", [root])
        assert place is not None
        assert place.parent == tmp_path / "cache" / "data"
        assert everything(root) == ["dtd.tar"]
        before = (place / "train" / "a" / "1.jpg").stat().st_mtime_ns
        assert find("dtd", [root]) == place
        assert (place / "train" / "a" / "1.jpg").stat().st_mtime_ns == before
        os.utime(packed, (1, 1))  # another archive of that name
        assert find("dtd", [root]) != place
    finally:
        root.chmod(0o755)


@pytest.mark.parametrize(
    "member",
    [
        special("gtsrb/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("gtsrb/pipe", tarfile.FIFOTYPE),
        ("../outside.jpg", b"x"),
        ("gtsrb/../../outside.jpg", b"x"),
    ],
)
def test_hostile_members_leave_nothing(root, member):
    pack(root, "gtsrb", [("gtsrb/a.jpg", b"x"), member])
    with pytest.raises(DataError, match=r"gtsrb\.tar: .*(refused|cannot be unpacked)"):
        find("gtsrb", [root])
    assert everything(root.parent) == ["sets", "sets/gtsrb.tar"]


def claiming(packed: Path) -> bytes:
    """The archive, with a first member that says it is a terabyte."""
    member = tarfile.TarInfo("gtsrb/0.jpg")
    member.size = 1 << 40
    return member.tobuf()[:512] + packed.read_bytes()[512:]


@pytest.mark.parametrize("part", [0, 100, 700, 6000, claiming])
def test_a_damaged_archive_leaves_nothing(root, part):
    packed = pack(root, "gtsrb", [(f"gtsrb/{i}.jpg", bytes(3000)) for i in range(4)])
    packed.write_bytes(part(packed) if callable(part) else packed.read_bytes()[:part])
    with pytest.raises(DataError, match=r"gtsrb\.tar: "):
        find("gtsrb", [root])
    assert everything(root) == ["gtsrb.tar"]


def test_a_process_that_was_faster_is_no_error(root, monkeypatch):
    pack(root, "gtsrb", [("gtsrb/a.jpg", b"mine")])
    rename = Path.rename

    def late(source: Path, target: Path) -> Path:
        target.mkdir()
        (target / "a.jpg").write_bytes(b"theirs")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", late)
    assert find("gtsrb", [root]) == root / "gtsrb"
    assert (root / "gtsrb" / "a.jpg").read_bytes() == b"theirs"
    assert everything(root) == ["gtsrb", "gtsrb.tar", "gtsrb/a.jpg"]


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name",
    [
        "dtd",
        "camvid",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gtsrb", "cifar10")),
    ],
)
def test_the_real_reduced_sets_have_the_published_counts(name):
    shared = Path(__file__).resolve().parents[4] / "shared" / "data"
    if not (shared / f"{name}.tar").is_file():
        pytest.skip("needs the image sets in ../shared/data")
    data = load(name, [shared])  # a PiggybackWarning would be an error
    assert len(data.classes) == dataset(name).classes
    assert not (shared / name).exists()
