"""What a survey of an image folder finds: counts, bad files, copies of every sort."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback.errors import DataError
from piggyback.train.data import survey as module
from piggyback.train.data.survey import survey, survey_splits
from piggyback.train.data.table import Table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 3)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                small = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
                image = Image.fromarray(small).resize((40, 32))
                image.save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_clean_data_has_counts_and_no_warnings(folder: Path) -> None:
    found = survey(folder)
    assert found.counts == {"cat": {"train": 12, "test": 3}, "dog": {"train": 12, "test": 3}}
    assert found.warnings() == []
    values = found.to_json()
    assert values["shorter_side"] == [32, 32, 32]
    assert json.loads(json.dumps(values)) == values


def test_copies_are_told_by_what_is_wrong_with_them(folder: Path) -> None:
    train, test = folder / "train", folder / "test"
    (train / "cat" / "again.png").write_bytes((train / "cat" / "0.png").read_bytes())
    (train / "dog" / "cat.png").write_bytes((train / "cat" / "1.png").read_bytes())
    leaked = Image.open(train / "dog" / "2.png").resize((80, 64))
    leaked.save(test / "dog" / "leak.jpg", quality=95)
    found = {one.what: one for one in survey(folder).copies}
    assert list(found) == ["two labels", "across splits", "within a split"]
    assert not found["across splits"].exact
    assert {Path(file).name for file in found["across splits"].files} == {"2.png", "leak.jpg"}
    assert found["two labels"].exact
    assert found["within a split"].exact


def test_pictures_that_come_out_almost_black_are_said(folder: Path) -> None:
    pixels = np.arange(400, dtype=np.uint16).reshape(20, 20) * 10  # 12 bits of 16
    Image.fromarray(pixels).save(folder / "train" / "cat" / "microscope.png")
    (told,) = survey(folder).warnings()
    assert told.startswith("1 of the images are almost black")
    assert "microscope.png" in told


def test_pictures_of_one_colour_are_no_copies_by_their_looks(folder: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (30 if name == "a" else 20, 20), "grey").save(
            folder / "train" / "cat" / f"{name}.png"
        )
    found = survey(folder)
    assert found.copies == []
    assert found.to_json()["grey"] == 2


def test_bad_files_and_empty_classes_are_named(folder: Path) -> None:
    torn = folder / "train" / "cat" / "torn.png"
    torn.write_bytes((folder / "train" / "cat" / "0.png").read_bytes()[:90])
    (folder / "train" / "fox").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "train" / "fox" / "only.png")
    (folder / "train" / "fox" / "notes.txt").write_text("x")
    found = survey(folder)
    assert [one.name for one in found.unreadable] == [str(torn)]
    warnings = " ".join(found.warnings())
    assert "'fox'" in warnings
    assert "out of balance" in warnings
    assert found.left_out == {"'.txt' file": 1}


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image"):
        survey(tmp_path)
    with pytest.raises(DataError, match="no such"):
        survey(tmp_path / "none")


def test_a_file_in_many_rows_is_looked_at_once_in_a_split(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(str(file) for file in folder.rglob("*.png"))[:2]
    rows = [f"{files[i % 2]},{'ab'[i % 2]},{('train', 'test')[i // 8]}\n" for i in range(11)]
    (tmp_path / "own.csv").write_text("image,label,split\n" + "".join(rows))
    looked, look = [], module._look
    monkeypatch.setattr(module, "_look", lambda *a, **k: looked.append(a[0]) or look(*a, **k))
    found = survey_splits("own", Table(tmp_path / "own.csv").splits)
    assert found.counts == {"a": {"train": 4, "test": 2}, "b": {"train": 4, "test": 1}}
    assert sorted(map(str, looked)) == sorted(files * 2)
    assert [(len(one.files), one.what) for one in found.copies] == [
        (6, "across splits"),
        (5, "across splits"),
    ]
