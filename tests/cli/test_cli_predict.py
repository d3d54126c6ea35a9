"""``piggyback predict``."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from support.cli_toys import COLOURS


@pytest.fixture
def second(trained: Path, tmp_path: Path) -> Path:
    """The same task under another name."""
    from piggyback.taskfile.file import load_file, save_file

    save_file(load_file(trained, "twin"), tmp_path / "twin.safetensors")
    return tmp_path / "twin.safetensors"


def test_files_folders_and_globs_are_answered_in_order(piggyback, trained, colours, toy):
    test = colours / "test"
    ran = piggyback(
        *("predict", test / "red" / "3.png", test / "blue", str(test / "gre*" / "[12].png")),
        *("--task", trained, "--backbone", f"{toy}:build", "--json", "--top", "2"),
    )
    told = json.loads(ran.out)
    wanted = [test / "red" / "3.png", *(test / "blue" / f"{i}.png" for i in range(6))]
    wanted += [test / "green" / f"{i}.png" for i in (1, 2)]
    assert [one["file"] for one in told] == list(map(str, wanted))
    for one in told:
        names, chances = zip(*(c.values() for c in one["classes"]), strict=True)
        assert len(names) == 2
        assert set(names) < set(COLOURS)
        assert chances[0] >= chances[1]


def test_a_table_s_images_are_answered_row_by_row(piggyback, trained, colours, toy, tmp_path):
    shutil.copytree(colours / "test", tmp_path / "own")
    rows = ["red/3.png", "blue/1.png", "red/3.png"]
    table = tmp_path / "own" / "new.csv"
    table.write_text("\n".join(["file,note", *(f"{row},x" for row in rows)]))
    line = ("predict", table, "--task", trained, "--backbone", f"{toy}:build")
    told = json.loads(piggyback(*line, "--column", "image=file", "--json").out)
    assert [one["file"] for one in told] == [str(tmp_path / "own" / row) for row in rows]
    piggyback(*line).refuses("'image'", "--column")
    piggyback(*line, "--column", "text=file").refuses("image=NAME")
    picture = tmp_path / "own" / "red" / "3.png"
    piggyback("predict", picture, *line[2:], "--column", "image=file").refuses("--column")


def test_bad_images_are_left_out_if_asked(piggyback, trained, second, colours, toy, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(colours / "test" / "red", images)
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:40])
    line = ("predict", images, "--task", trained, "--task", second, "--backbone", f"{toy}:build")
    piggyback(*line).refuses("1.png", "--skip-bad")
    ran = piggyback(*line, "--skip-bad", "--json")
    told = json.loads(ran.out)
    assert [Path(one["file"]).stem for one in told] == [*"00", "1", *"22334455"]
    assert [one["file"] for one in told if "error" in one] == [str(images / "1.png")]
    assert ran.err.count("left out: ") == 1
    rows = list(csv.DictReader(piggyback(*line, "--skip-bad", "--format", "csv").out.splitlines()))
    assert {Path(row["file"]).stem for row in rows} == set("02345")
    assert "1.png" not in piggyback(*line, "--skip-bad").out
    for file in images.iterdir():
        file.write_bytes(b"")
    ran = piggyback(*line, "--skip-bad")
    assert (ran.code, ran.out) == (1, "")


def test_images_that_are_not_there_are_left_out_as_bad_ones_are(
    piggyback, trained, colours, toy, tmp_path
):
    good = colours / "test" / "red" / "3.png"
    table = tmp_path / "own.csv"
    table.write_text(f"image\n{good}\ngone.png\naway.png\n")
    how = ("--task", trained, "--backbone", f"{toy}:build")
    piggyback("predict", table, *how).refuses("row 2", "gone.png", "1 more")
    for given in ([table], [good, "gone.png", "away.png"]):
        ran = piggyback("predict", *given, *how, "--skip-bad", "--json")
        told = json.loads(ran.out)
        assert [(Path(one["file"]).name, "error" in one) for one in told] == [
            ("3.png", False), ("gone.png", True), ("away.png", True),
        ]  # fmt: skip
        assert ran.err.count("left out: ") == 2
    piggyback("predict", good, "*.none", *how, "--skip-bad").refuses("*.none")


def test_none_of_these_where_no_task_is_sure(piggyback, trained, second, colours, toy):
    line = ("predict", colours / "test" / "red" / "3.png", "--task", trained, "--task", second)
    line = (*line, "--backbone", f"{toy}:build")
    (told,) = json.loads(piggyback(*line, "--infer-task", "--at-least", "1", "--json").out)
    assert (told["task"], told["classes"]) == (None, [])
    assert "none of these" in piggyback(*line, "--infer-task", "--at-least", "1").out
    assert (
        "none of these"
        in piggyback(*line, "--infer-task", "--at-least", "1", "--format", "csv").out
    )
    (told,) = json.loads(piggyback(*line, "--infer-task", "--at-least", "0", "--json").out)
    assert told["task"] == "colours"
    piggyback(*line, "--at-least", "0.5").refuses("--infer-task")


def test_csv_has_a_line_a_class(piggyback, trained, colours, toy):
    ran = piggyback(
        *("predict", colours / "test" / "red", "--task", trained, "--backbone", f"{toy}:build"),
        *("--format", "csv", "--top", "3"),
    )
    rows = list(csv.DictReader(ran.out.splitlines()))
    assert len(rows) == 6 * 3
    assert sum(float(row["probability"]) for row in rows[:3]) == pytest.approx(1, abs=1e-5)


def test_several_tasks_answer_all_or_the_surest(piggyback, trained, second, colours, toy):
    arguments = (
        *("predict", colours / "test" / "red", "--task", trained, "--task", second),
        *("--backbone", f"{toy}:build", "--json"),
    )
    every = json.loads(piggyback(*arguments).out)
    assert [one["task"] for one in every] == ["colours", "twin"] * 6
    surest = json.loads(piggyback(*arguments, "--infer-task", "--at-least", "0").out)
    assert len(surest) == 6
    for one in surest:
        rivals = [other for other in every if other["file"] == one["file"]]
        assert one["confidence"] == max(rival["confidence"] for rival in rivals)


def test_names_in_a_table_are_no_markup_and_fit_80_columns(piggyback, trained, colours, toy):
    from piggyback.taskfile.file import load_file, save_file

    names = ("stop[/x]", "[bold]go", "slow:cat:")
    task = load_file(trained, "signs")
    save_file(replace(task, info=replace(task.info, classes=names)), "signs.safetensors")
    shutil.copytree(colours / "test", "photos[old]")
    ran = piggyback(
        *("predict", "photos[old]", "--task", "signs.safetensors", "--backbone", f"{toy}:build"),
    )
    assert ran.code == 0, ran.err
    assert max(map(len, ran.out.splitlines())) <= 80
    rows = [line.split() for line in ran.out.splitlines() if "signs" in line]
    assert len(rows) == 18
    assert {row[0].rpartition("/")[0] for row in rows} == {
        f"photos[old]/{colour}" for colour in COLOURS
    }
    assert {row[2] for row in rows} == set(names)
