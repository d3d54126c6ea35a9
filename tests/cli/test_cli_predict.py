"""``piggyback predict``."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from cli_toys import COLOURS, Command


@pytest.fixture
def second(trained: Path, tmp_path: Path) -> Path:
    """The same task under another name."""
    from piggyback.tasks.file import load_file, save_file

    save_file(load_file(trained, "twin"), tmp_path / "twin.safetensors")
    return tmp_path / "twin.safetensors"


def test_files_folders_and_globs_are_answered_in_order(
    piggyback: Command, trained: Path, colours: Path, toy: str
) -> None:
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


def test_table_fits_80_columns(piggyback: Command, trained: Path, colours: Path, toy: str) -> None:
    ran = piggyback("predict", colours / "test", "--task", trained, "--backbone", f"{toy}:build")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 80
    assert sum(ran.out.count(name) for name in COLOURS) >= 18


def test_csv_has_a_line_a_class(piggyback: Command, trained: Path, colours: Path, toy: str) -> None:
    ran = piggyback(
        *("predict", colours / "test" / "red", "--task", trained, "--backbone", f"{toy}:build"),
        *("--format", "csv", "--top", "3"),
    )
    rows = list(csv.DictReader(ran.out.splitlines()))
    assert len(rows) == 6 * 3
    assert sum(float(row["probability"]) for row in rows[:3]) == pytest.approx(1, abs=1e-5)


def test_several_tasks_answer_all_or_the_surest(
    piggyback: Command, trained: Path, second: Path, colours: Path, toy: str
) -> None:
    arguments = (
        *("predict", colours / "test" / "red", "--task", trained, "--task", second),
        *("--backbone", f"{toy}:build", "--json"),
    )
    every = json.loads(piggyback(*arguments).out)
    assert [one["task"] for one in every] == ["colours", "twin"] * 6
    surest = json.loads(piggyback(*arguments, "--infer-task").out)
    assert len(surest) == 6
    for one in surest:
        rivals = [other for other in every if other["file"] == one["file"]]
        assert one["confidence"] == max(rival["confidence"] for rival in rivals)
