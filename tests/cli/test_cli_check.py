"""``piggyback check``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from support.cli_toys import COLOURS, Command


def test_counts_are_shown_and_files_written(piggyback: Command, colours: Path) -> None:
    ran = piggyback("check", colours, "--out", "found")
    assert ran.code == 0
    for name in COLOURS:
        assert name in ran.out
    values = json.loads(Path("found/check.json").read_text())
    assert values["counts"]["red"] == {"train": 20, "test": 6}
    with Image.open("found/classes.png") as sheet:
        assert sheet.width > 400


def test_what_training_refuses_ends_with_1(piggyback: Command, colours: Path) -> None:
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


def test_tables_of_every_kind_are_surveyed(piggyback: Command, colours: Path) -> None:
    pictures = sorted(str(file.resolve()) for file in (colours / "train" / "red").iterdir())[:4]

    def check(table: str, *given: str) -> tuple[int, dict[str, Any]]:
        Path("own.csv").write_text(table)
        ran = piggyback("check", "own.csv", *given, "--json", "--out", "found")
        return ran.code, json.loads(ran.out)

    rows = [
        f"{file},{tags},{i}" for i, (file, tags) in enumerate(zip(pictures, "aabb", strict=True))
    ]
    code, values = check("\n".join(["image,label,width (m)", *rows]))
    assert (code, values["counts"]) == (0, {"a": {"train": 2}, "b": {"train": 2}})
    assert Path("found/classes.png").exists()
    code, values = check(
        "\n".join(["image,label,width (m)", *rows[:2], f"{pictures[2]},,3"]), "--kind", "multilabel"
    )
    assert (code, values["counts"]) == (0, {"a": {"train": 2}})
    code, values = check(
        "\n".join(["image,label,width (m)", *rows]),
        "--kind",
        "regression",
        "--column",
        "label=width (m)",
    )
    assert values["numbers"] == {"width (m)": {"train": [0, 1, 3]}}
    code, values = check(
        "text,label,split\na joy,good,train\na bore,bad,train\na joy,bad,test\nfun,good,test\n"
    )
    assert values["words"] == [1, 2, 2]
    assert [one["what"] for one in values["copies"]] == ["two labels"]
    code, values = check(
        "text,label,split\nin New York,O B-place I-place,train\n", "--kind", "tokens"
    )
    assert values["counts"] == {"place": {"train": 1}}
    code, values = check("text,label,split\nfun,good,test\na joy,good,train\na bore,bad,train\n")
    assert code == 0  # val and test may lack a class
    assert list(values["counts"]["good"]) == ["train", "test"]
    assert "'bad'" in values["warnings"][0]


def test_what_is_no_table_has_no_columns(piggyback: Command, colours: Path) -> None:
    piggyback("check", colours, "--column", "label=a").refuses("--column")
    piggyback("check", colours, "--kind", "tokens").refuses("--kind tokens")
    Path("own.csv").write_text("image,label\nnone.png,a\n")
    found = piggyback("check", "own.csv")
    assert (found.code, "none.png" in found.out) == (1, True)
    Path("own.tar.gz").write_bytes(b"")
    for command in (("check", "own.tar.gz"), ("train", "--data", "own.tar.gz")):
        piggyback(*command).refuses("own.tar.gz", "a file")
