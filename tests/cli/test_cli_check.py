"""``piggyback check``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.cli_toys import COLOURS


def test_counts_are_shown_and_files_written(piggyback, colours):
    ran = piggyback("check", colours, "--out", "found")
    assert ran.code == 0
    for name in COLOURS:
        assert name in ran.out
    values = json.loads(Path("found/check.json").read_text())
    assert values["counts"]["red"] == {"train": 20, "test": 6}
    with Image.open("found/classes.png") as sheet:
        assert sheet.width > 400


def test_what_training_refuses_ends_with_1(piggyback, colours):
    shutil.copytree(colours, "own")
    Path("own/train/red/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ran = piggyback("check", "own")
    assert ran.code == 1
    assert "torn.png" in ran.out
    assert "torn.png" in piggyback("check", "own", "--json").out
    piggyback("check", "nowhere").refuses("nowhere")
    Path("own/train/red/torn.png").unlink()
    assert piggyback("check", "own").code == 0
    shutil.rmtree("own/train/blue")
    assert piggyback("check", "own").code == 1


def test_tables_of_every_kind_are_surveyed(piggyback, colours):
    pictures = sorted(str(file.resolve()) for file in (colours / "train" / "red").iterdir())[:12]

    def check(table: str, *given: str) -> tuple[int, dict[str, Any]]:
        Path("own.csv").write_text(table)
        ran = piggyback("check", "own.csv", *given, "--json", "--out", "found")
        return ran.code, json.loads(ran.out)

    rows = [
        f"{file},{tags},{i}"
        for i, (file, tags) in enumerate(zip(pictures, "aabb" * 3, strict=True))
    ]
    code, values = check("\n".join(["image,label,width (m)", *rows]))
    assert (code, values["counts"]) == (0, {"a": {"train": 6}, "b": {"train": 6}})
    assert Path("found/classes.png").exists()
    code, values = check(
        "\n".join(["image,label,width (m)", *rows[:-1], f"{pictures[-1]},,3"]),
        "--kind",
        "multilabel",
    )
    assert (code, values["counts"]) == (0, {"a": {"train": 6}, "b": {"train": 5}})
    code, values = check(
        "\n".join(["image,label,width (m)", *rows]),
        "--kind",
        "regression",
        "--column",
        "label=width (m)",
    )
    assert values["numbers"] == {"width (m)": {"train": [0, 5, 11]}}
    code, values = check(
        "text,label,split\na joy,good,train\na bore,bad,train\na joy,bad,test\nfun,good,test\n"
    )
    assert values["words"] == [1, 2, 2]
    assert [one["what"] for one in values["copies"]] == ["two labels"]
    code, values = check(
        "text,label,split\nin New York,O B-place I-place,train\n", "--kind", "tokens"
    )
    assert values["counts"] == {"place": {"train": 1}}
    code, values = check(
        "text,label,split\nfun,good,test\na joy,good,train\na bore,bad,train\nok,good,train\n"
    )
    assert code == 0  # val and test may lack a class
    assert list(values["counts"]["good"]) == ["train", "test"]
    assert "'bad'" in values["warnings"][0]


def test_what_is_no_table_has_no_columns(piggyback, colours):
    piggyback("check", colours, "--column", "label=a").refuses("--column")
    piggyback("check", colours, "--kind", "tokens").refuses("--kind tokens")
    Path("own.csv").write_text("image,label\nnone.png,a\n")
    found = piggyback("check", "own.csv")
    assert (found.code, "none.png" in found.out) == (1, True)
    Path("parts").mkdir()
    Path("parts/0.parquet").write_bytes(b"")
    for command in (("check", "parts"), ("train", "--data", "parts")):
        piggyback(*command).refuses("Parquet", "hf:parts")
    shutil.copytree(colours, "own")
    Path("own/metadata.parquet").write_bytes(b"")  # beside folders of classes only another file
    assert piggyback("check", "own").code == 0
    Path("own.tar.gz").write_bytes(b"")
    for command in (("check", "own.tar.gz"), ("train", "--data", "own.tar.gz")):
        piggyback(*command).refuses("own.tar.gz", "a file")


@pytest.mark.parametrize(
    "folders",
    [
        ("cat", "dog"),  # of one image each nothing can be cut
        ("test/cat", "test/dog"),
        ("cat/train", "cat/test", "dog/train"),
        ("all/cat", "all/dog"),
        ("cat", "cat", "cat"),
    ],
)
def test_what_training_refuses_check_does_not_pass(piggyback, colours, folders):
    files = sorted(colours.rglob("*.png"))
    for at, folder in enumerate(folders):
        Path("own", folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(files[at], Path("own", folder, f"{at}.png"))
    reason = piggyback("train", "--data", "own").err.removeprefix("error: ").strip()
    found = piggyback("check", "own")
    assert (found.code, "training would refuse" in found.out) == (1, True), found
    assert reason in found.out


def test_check_says_what_training_would(piggyback, colours):
    shutil.copytree(colours / "train", "own")
    shutil.copytree("own/red", "own/Red")
    shutil.copy("own/red/1.png", "own/1.png")
    said = json.loads(piggyback("check", "own", "--json").out)
    assert (said["refused"], len(said["notes"])) == (None, 2)
    assert (
        "under two labels" in said["warnings"][0]
    )  # of which training's own line is not said again
    shown = piggyback("check", "own")
    assert shown.code == 0
    for line in said["notes"]:
        assert line in shown.out


def test_a_table_is_read_once_and_each_thing_said_once(piggyback, monkeypatch):
    from piggyback.train.data import table

    reads, read = [], table.read_columns
    monkeypatch.setattr(table, "read_columns", lambda path: reads.append(path) or read(path))
    rows = [f"text {i},{'ab'[i % 2]},train\n" for i in range(20)]
    Path("own.csv").write_text(
        "text,label,split\n" + "".join(rows) + "text 0,a,val\ntext 0,a,val\n"
    )
    found = piggyback("check", "own.csv")
    assert (found.code, len(reads)) == (0, 1)
    assert found.out.count("no texts in val for 'b'") == 1
    assert found.out.count("in more than one split") == 1
    assert "val has no" not in found.out
    assert "byte for byte" not in found.out
