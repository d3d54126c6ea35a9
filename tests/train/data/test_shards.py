"""Tars in WebDataset's layout: the same samples as from folders, and what is wrong with one by shard and key."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import pytest
import torch

from piggyback.errors import DataError
from piggyback.images.preprocessing import Preprocessing
from piggyback.train import train
from piggyback.train.data.columns import is_table
from piggyback.train.data.shards import shards_of
from piggyback.train.data.table import Table, load_table
from support.encoded_pictures import encoded, noise, png
from support.training_toys import assert_same, interrupted


def written(place, files):
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return place


def samples(numbers, label="cls"):
    for i in numbers:
        name = ("cat", "dog")[i % 2]
        yield f"pets/{i:04}.png", png(i)
        text = name if label == "cls" else json.dumps({"label": name, "owner": str(i // 4)})
        yield f"pets/{i:04}.{label}", text.encode()
        yield f"pets/{i:04}.thumb.png", b"another"


@pytest.mark.parametrize("label", ["cls", "json"])
def test_a_run_on_shards_is_that_on_their_files_and_resumes(tmp_path, backbone, recipe, label):
    for shard in range(2):
        written(tmp_path / f"pets/{shard}.tar", samples(range(shard * 20, shard * 20 + 20), label))
    rows = ["image,label\n"]
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(png(i))
        rows.append(f"{i}.png,{('cat', 'dog')[i % 2]}\n")
    (tmp_path / "pets.csv").write_text("".join(rows))
    data, same = load_table(tmp_path / "pets"), load_table(tmp_path / "pets.csv")
    for split, part in data.splits().items():
        assert part.labels.tolist() == same.splits()[split].labels.tolist()
        assert list(part.files) == [file.read_bytes() for file in same.splits()[split].files]
    theirs = train(backbone, same, "a", recipe())
    resumed = interrupted(backbone, data, "a", recipe(workers=2), tmp_path / "run")
    assert_same(resumed.task, theirs.task)


def test_splits_from_names_patterns_and_fields(tmp_path):
    for split, numbers in (("train", range(12)), ("val", range(20, 26)), ("test", range(30, 34))):
        written(tmp_path / "a" / f"pets-{split}-000.tar", samples(numbers))
        written(tmp_path / "b" / split / "000.tar", samples(range(len(numbers)), "json"))
    for source in (tmp_path / "a", tmp_path / "a" / "*.tar", tmp_path / "b"):
        parts = Table(source).splits
        assert {split: len(part) for split, part in parts.items()} == {
            "train": 12,
            "val": 6,
            "test": 4,
        }
    assert parts["val"].classes == ("cat", "dog")
    one = Table(tmp_path / "b" / "train" / "000.tar", {"label": "owner"}).splits["train"]
    assert (one.classes, len(one)) == (("0", "1", "2"), 12)
    grouped = load_table(tmp_path / "a" / "pets-train-000.tar").test
    assert torch.equal(
        grouped.load(0, Preprocessing(8)), grouped.in_memory(Preprocessing(8)).images[0]
    )


def test_a_folder_of_classes_with_a_tar_in_it_stays_one(tmp_path):
    (tmp_path / "cat").mkdir()
    written(tmp_path / "backup.tar", samples(range(2)))
    (tmp_path / "b" / "train" / "cat").mkdir(parents=True)
    written(tmp_path / "b" / "train" / "backup.tar", samples(range(2)))
    assert not any(is_table(place) for place in (tmp_path, tmp_path / "b"))
    assert shards_of(tmp_path / "cat") == []


GOOD = list(samples(range(6)))
JPEG = encoded(noise(7), "JPEG")


def test_a_compressed_tar_is_called_one(tmp_path):
    place = written(tmp_path / "one.tar", GOOD)
    place.write_bytes(gzip.compress(place.read_bytes()))
    with pytest.raises(DataError, match=r"one\.tar'.*compressed"):
        load_table(place)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ([*GOOD, ("7.png", png(7))], "key '7': an image without a label"),
        ([*GOOD, ("7.cls", b"cat")], "key '7': a label without an image"),
        ([*GOOD, ("7.png", png(7)), ("7.jpg", JPEG), ("7.cls", b"cat")], "key '7': two images"),
        ([*GOOD, GOOD[0]], "key 'pets/0000': two images"),
        ([*GOOD, GOOD[1]], "key 'pets/0000': two files cls"),
        ([*GOOD, ("7.png", png(7)), ("7.cls", b" ")], "key '7': label ''"),
        ([*GOOD, ("7.png", png(7)), ("7.cls", b"\xff")], "key '7': .cls cannot be read"),
        ([*GOOD, ("7.png", png(7)), ("7.json", b"{")], "key '7': .json cannot be read"),
        ([*GOOD, ("7.png", png(7)), ("7.json", b"[1]")], "key '7': .json '\\[1\\]': expected an object"),
        ([*GOOD, ("7.png", png(7)), ("7.json", b'{"name": "x"}')], "key '7': label None"),
        ([*GOOD, ("7.png", png(7)[:70]), ("7.cls", b"cat")], "key '7': image.* cannot be decoded"),
        ([("a.txt", b"x")], "hold no samples"),
        ([], "hold no samples"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_shard_and_key(tmp_path, files, wanted):
    place = written(tmp_path / "one.tar", files)
    with pytest.raises(DataError, match=rf"one\.tar'.*{wanted}") as caught:
        load_table(place)
    assert "\n" not in str(caught.value)


def test_keys_in_two_shards_and_shards_of_no_split(tmp_path):
    written(tmp_path / "a" / "0.tar", samples(range(6)))
    written(tmp_path / "a" / "1.tar", samples(range(5, 9)))
    with pytest.raises(DataError, match=r"1\.tar', key 'pets/0005': .*0\.tar"):
        load_table(tmp_path / "a")
    written(tmp_path / "b" / "train-0.tar", samples(range(6)))
    written(tmp_path / "b" / "more.tar", samples(range(6, 9)))
    with pytest.raises(DataError, match=r"more\.tar': no split"):
        load_table(tmp_path / "b")
    with pytest.raises(DataError, match=r"none-\*\.tar': no such file"):
        load_table(tmp_path / "none-*.tar")


def test_a_tar_cut_anywhere_or_damaged_is_refused(tmp_path):
    place = written(tmp_path / "whole.tar", GOOD)
    data = place.read_bytes()
    last = data.rstrip(b"\0")
    # Behind the last file's data all is zeros, of which one block is the end's mark.
    for cut in range(0, -(-len(last) // 512) * 512 + 1, 256):
        place.write_bytes(data[:cut])
        with pytest.raises(DataError, match=r"whole\.tar") as caught:
            load_table(place)
        assert "\n" not in str(caught.value)
    place.write_bytes(data + data)
    with pytest.raises(DataError, match=r"whole\.tar.*damaged"):
        load_table(place)
    start = data.index(b"pets/0003.png")
    place.write_bytes(data[:start] + b"\xff" * 512 + data[start + 512 :])
    with pytest.raises(DataError, match=r"whole\.tar.*damaged"):
        load_table(place)
    place.write_bytes(data)
    with tarfile.open(place, "a") as tar:
        link = tarfile.TarInfo("9.png")
        link.type, link.linkname = tarfile.SYMTYPE, "pets/0000.png"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"whole\.tar.*'9\.png' is a link"):
        load_table(place)
