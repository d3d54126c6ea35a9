"""Parquet files and Hugging Face's sets: read as other tables are, with their images and classes' names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from piggyback.errors import DataError
from piggyback.images.preprocessing import Preprocessing
from piggyback.train.data.table import Table, load_table
from support.encoded_pictures import png

arrow = pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'parquet'")


def written(place, columns, features=None):
    """A Parquet file as Hugging Face writes it, its classes' names in the file's metadata."""
    made = arrow.table(columns)
    if features:
        made = made.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    parquet.write_table(made, place, row_group_size=4)
    return place


def held(rows=12):
    return [{"bytes": png(i), "path": None} for i in range(rows)]


def test_paths_and_texts_read_as_from_csv(tmp_path):
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    columns = {"image": [f"{i}.png" for i in range(12)], "label": ["a", "b"] * 6}
    place = written(tmp_path / "a.parquet", {**columns, "other": [[1.0]] * 12})
    lines = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(12))
    (tmp_path / "a.csv").write_text("image,label\n" + lines)
    ours, theirs = load_table(place), load_table(tmp_path / "a.csv")
    for split, part in ours.splits().items():
        assert list(part.files) == list(theirs.splits()[split].files)
        assert part.labels.tolist() == theirs.splits()[split].labels.tolist()
    texts = written(tmp_path / "t.parquet", {"text": ["x", "y"], "label": ["a", "b"]})
    assert Table(texts).splits["train"].texts == ("x", "y")


def test_cells_that_come_again_are_read_as_those_of_a_csv(tmp_path):
    """Of whatever type, and of a dictionary with words that no row has, a row group's own."""
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    rows = [(f"./{i % 4}.png" if i % 8 > 3 else f"{i % 4}.png", i % 2, i % 4) for i in range(40)]
    splits = [("train", "Train", "val", "test")[at] for *_, at in rows]
    words = arrow.array(["none.png", *(name for name, *_ in rows[7::-1])])
    codes = arrow.array([8 - i % 8 for i in range(40)])
    columns = {
        "image": arrow.DictionaryArray.from_arrays(codes, words),
        "label": arrow.array([n for _, n, _ in rows]),
        "split": arrow.array(splits, arrow.large_string()),
    }
    lines = (f"{name},{n},{s}\n" for (name, n, _), s in zip(rows, splits, strict=True))
    (tmp_path / "a.csv").write_text("image,label,split\n" + "".join(lines))
    ours = load_table(written(tmp_path / "a.parquet", columns))
    theirs = load_table(tmp_path / "a.csv")
    assert ours.describe()["sha256"] == theirs.describe()["sha256"]
    assert len(ours.notes) == 3
    assert ours.notes == theirs.notes
    for split, part in ours.splits().items():
        assert list(part.files) == list(theirs.splits()[split].files)

    columns["label"] = arrow.array([n if at != 32 else None for at, (_, n, _) in enumerate(rows)])
    with pytest.raises(DataError, match="row 33: label None"):
        load_table(written(tmp_path / "a.parquet", columns))
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"row 3: .*2\.png"):
        load_table(tmp_path / "a.parquet")


@pytest.mark.parametrize("how", ["struct", "binary", "paths in structs"])
def test_images_in_the_file_are_those_beside_it(tmp_path, how):
    images = held()
    (tmp_path / "files").mkdir()
    for i, one in enumerate(images):
        (tmp_path / "files" / f"{i}.png").write_bytes(one["bytes"])
    if how == "binary":
        images = [one["bytes"] for one in images]
    elif how == "paths in structs":
        images = [{"bytes": None, "path": f"files/{i}.png"} for i in range(12)]
    names = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    place = written(tmp_path / "a.parquet", {"image": images, "label": [0, 1] * 6}, names)
    found = Table(place).splits["train"]
    assert found.classes == ("cat", "dog")
    seen = Preprocessing(8)
    for i in range(12):
        pixels = np.array(Image.open(tmp_path / "files" / f"{i}.png"))
        assert torch.equal(found.load(i, seen), torch.from_numpy(pixels).permute(2, 0, 1))
    assert found.shorter_side(3) == 8
    part = found.subset(torch.tensor([5, 2]))
    assert torch.equal(part.load(1, seen), found.load(2, seen))
    assert torch.equal(part.in_memory(seen).images[0], found.load(5, seen))
    assert (part.content_keys() == found.content_keys()[[5, 2]]).all()
    assert part.digest() != found.subset(torch.tensor([2, 5])).digest()


@pytest.mark.parametrize(
    ("column", "cell", "wanted"),
    [
        ("image", {"bytes": png(0)[:60], "path": None}, "row 13: image.*cannot be decoded"),
        ("image", {"bytes": None, "path": None}, "row 13: no image"),
        ("image", {"bytes": None, "path": "none.png"}, "row 13: .*none.png"),
        ("label", None, "row 13: label None"),
        ("label", -1, "row 13: label None"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(tmp_path, column, cell, wanted):
    names = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    columns = {"image": held(13), "label": [0, 1] * 6 + [0]}
    columns[column][12] = cell
    with pytest.raises(DataError, match=wanted) as caught:
        load_table(written(tmp_path / "a.parquet", columns, names))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "about", ["[]", "{", '{"info": []}', '{"info": {"features": {"label": 1}}}']
)
def test_what_other_tools_write_into_the_metadata_is_passed_over(tmp_path, about):
    columns = {"text": ["x", "y"], "label": ["a", "b"], "who": [1.0, float("nan")]}
    made = arrow.table(columns).replace_schema_metadata({"huggingface": about})
    parquet.write_table(made, tmp_path / "a.parquet")
    assert Table(tmp_path / "a.parquet").splits["train"].classes == ("a", "b")
    with pytest.raises(DataError, match="row 2: who is empty"):
        Table(tmp_path / "a.parquet", {"group": "who"})


def test_files_that_are_no_parquet_and_columns_that_are_no_images(tmp_path):
    place = tmp_path / "a.parquet"
    with pytest.raises(DataError, match="no such file"):
        load_table(place)
    place.write_bytes(b"image,label\n")
    with pytest.raises(DataError, match=r"a\.parquet.*cannot be read"):
        load_table(place)
    written(place, {"image": [{"x": 1}], "label": ["a"]})
    with pytest.raises(DataError, match=r"row 1: image .*path of a file"):
        load_table(place)
    twice = arrow.table([[1], [2]], names=["label", "label"])
    parquet.write_table(twice, place)
    with pytest.raises(DataError, match="two columns 'label'"):
        load_table(place)


def test_copies_within_the_file_are_said_and_kept(tmp_path):
    images = [*held(), {"bytes": png(0), "path": None}]
    columns = {"image": images, "label": ["a", "b"] * 6 + ["b"], "split": ["train"] * 12 + ["test"]}
    data = load_table(written(tmp_path / "a.parquet", columns))
    assert [note.split()[:2] for note in data.notes if "train" in note] == [["1", "images"]]
    assert data.notes[-1].startswith("1 rows have an image that an earlier row has")
    assert len(data.test) == 1


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """``datasets``, its cache in a folder of the test's."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    found = pytest.importorskip("datasets", reason="needs the extra 'hf'")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found.disable_progress_bars()
    return found


def test_a_hugging_face_folder_has_its_splits_and_classes(tmp_path, hub):
    root = tmp_path / "pets"
    for split, rows in (("train", 12), ("test", 4)):
        for i in range(rows):
            place = root / split / ("cat", "dog")[i % 2] / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(png(i if split == "train" else 90 + i))
    data = load_table(f"hf:{root}")
    assert data.classes == ("cat", "dog")
    assert (len(data.train) + len(data.val), len(data.test)) == (12, 4)
    assert [each.split for each in data.cut] == ["val"]


def test_what_save_to_disk_wrote_is_read_and_other_splits_are_said(tmp_path, hub):
    kinds = hub.Features(
        {"sentence": hub.Value("string"), "topics": hub.List(hub.ClassLabel(names=["art", "war"]))}
    )
    rows = {"sentence": [f"text {i}" for i in range(20)], "topics": [[0], [0, 1], [1], []] * 5}
    parts = {name: hub.Dataset.from_dict(rows, features=kinds) for name in ("train", "unlabelled")}
    hub.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    columns = {"text": "sentence", "label": "topics"}
    data = load_table(f"hf:{tmp_path / 'saved'}", columns=columns, kind="multilabel")
    assert data.classes == ("art", "war")
    assert sum(len(part) for part in data.splits().values()) == 20
    assert data.notes == ("left out: split 'unlabelled'",)


def test_a_hugging_face_set_that_is_not_there(tmp_path, hub):
    with pytest.raises(DataError, match=r"hf:.*none") as caught:
        load_table(f"hf:{tmp_path / 'none'}")
    assert "\n" not in str(caught.value)
