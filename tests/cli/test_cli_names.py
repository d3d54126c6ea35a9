"""Names that a terminal, a page or a spreadsheet would act on are shown escaped, and written as they are."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from piggyback.cli.screen import program
from support.cli_toys import FAST, train

NAMES = ("=cmd|' calc'!A1", "r\nwrote evil", "x\u202ey\x1b[31m$\\frac$")
"""A formula, two lines, and codes that reorder, colour and typeset."""


@pytest.fixture(scope="module")
def named(colours: Path, toy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images under such names in ``data``, and the task learned from them."""
    root = tmp_path_factory.mktemp("named")
    for split in ("train", "test"):
        for own, name in zip(sorted((colours / split).iterdir()), NAMES, strict=True):
            shutil.copytree(own, root / "data" / split / name)
    where = ("--data", root / "data", "--out", root / "run")
    train(*where, "--backbone", f"{toy}:build", "--name", "named", *FAST)
    return root


COMMANDS = {
    "train": "train --data DATA --backbone TOY --epochs 1 --batch-size 16",
    "bad": "train --data DATA --backbone TOY --epochs 1 --column x=y",
    "compare": "compare --data n=DATA --methods head --backbone TOY --epochs 1 --batch-size 16",
    "check": "check DATA --out chk",
    "evaluate": "evaluate TASK --data DATA --backbone TOY --per-class",
    "report": "evaluate TASK --data DATA --backbone TOY --report rep",
    "predict": "predict DATA/test --task TASK --backbone TOY",
    "skip": "predict DATA/test BAD --skip-bad --task TASK --backbone TOY",
    "inspect": "inspect TASK",
    "card": "inspect TASK --card",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_shown_is_text_in_its_own_line(piggyback, named, toy, tmp_path, command):
    bad = tmp_path / "bad\nwrote evil\x1b[2J.png"
    bad.write_bytes(b"no image")
    places = {"DATA": named / "data", "TASK": named / "run/named.safetensors", "BAD": bad}
    words = {key: str(place) for key, place in places.items()} | {"TOY": f"{toy}:build"}
    given = []
    for part in COMMANDS[command].split():
        for key, value in words.items():
            part = part.replace(key, value)
        given.append(part)
    ran = piggyback(*given)
    assert ran.code == (command == "bad"), ran
    shown = ran.out + ran.err
    if command == "report":
        shown += Path("rep/index.html").read_text()
    for line in shown.split("\n"):
        assert line.isprintable(), line
        assert not line.lstrip().startswith("wrote evil"), shown


def test_what_is_written_has_the_names_themselves(piggyback, named, toy):
    """But in a report's CSV, which a spreadsheet opens, no cell is a formula; its JSON has every name."""
    task, options = named / "run/named.safetensors", ("--backbone", f"{toy}:build")
    ran = piggyback("predict", named / "data/test", "--task", task, *options, "--format", "csv")
    rows = list(csv.reader(io.StringIO(ran.out)))[1:]
    assert {row[3] for row in rows} == set(NAMES)
    ran = piggyback("predict", named / "data/test", "--task", task, *options, "--json")
    found = [one for each in json.loads(ran.out) for one in each["classes"]]
    assert {one["class"] for one in found} == set(NAMES)
    assert json.loads(piggyback("inspect", task, "--json").out)["classes"] == list(NAMES)
    piggyback("evaluate", task, "--data", named / "data", *options, "--report", "rep")
    with Path("rep/classes.csv").open(newline="") as file:
        cells = [row[0] for row in csv.reader(file)][1:]
    assert cells == [f"'{NAMES[0]}", *NAMES[1:]]
    assert json.loads(Path("rep/report.json").read_text())["classes"].keys() == set(NAMES)


def test_a_printed_command_starts_this_program(monkeypatch, tmp_path):
    """Whether its environment is active or not; Ctrl-C and quickstart print one."""
    script = tmp_path / "my env/bin/piggyback"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(script)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == f"'{script}'"
    monkeypatch.setenv("PATH", str(script.parent))
    assert program() == "piggyback"
    monkeypatch.setattr("sys.argv", [__file__])
    assert program().endswith(" -m piggyback")
