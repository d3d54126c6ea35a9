"""``piggyback compare``."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from PIL import Image

from piggyback.taskfile.file import load_file
from support.cli_toys import FAST

KEYS = [
    *("task", "method", "seed", "accuracy", "val_accuracy"),
    *("bits_per_weight", "bytes", "seconds", "verdict", "measure"),
]


def test_compare_writes_one_table_and_proves_that_nothing_is_forgotten(piggyback, toy, colours):
    arguments = (
        *("compare", "--data", f"a={colours}", "--data", f"b={colours}"),
        *("--backbone", f"{toy}:build", *FAST, "--out", "out"),
    )
    ran = piggyback(*arguments)
    assert ran.code == 0, ran.err
    assert "all in one model, 4 tasks: each as accurate as when it was trained" in ran.out
    assert "backbone bit-identical: " in ran.out
    before, after = ran.out.split("backbone bit-identical: ")[1].split("\n")[0].split(", ")
    assert before.removesuffix(" before") == after.removesuffix(" after")
    assert max(map(len, (ran.out + ran.err).splitlines())) <= 80

    rows = json.loads(Path("out/table.json").read_text())
    assert [(row["task"], row["method"]) for row in rows] == [
        (task, method) for task in "ab" for method in ("head", "masks", "finetune")
    ]
    with Path("out/table.csv").open() as file:
        assert next(csv.reader(file)) == KEYS
    assert Path("out/table.md").read_text().count("\n| ") == len(rows)
    for name in ("accuracy.png", "density.png"):
        assert Image.open(f"out/{name}").width > 300
    for task in "ab":
        assert Path(f"out/tasks/{task}.safetensors").exists()

    again = piggyback(*arguments, "--resume", "--json")  # all runs have ended: none is repeated
    assert json.loads(again.out) == rows


def test_json_rows_have_exactly_the_promised_keys(piggyback, toy, colours):
    ran = piggyback(
        *("compare", "--data", f"a={colours}", "--methods", "head,masks", "--json"),
        *("--backbone", f"{toy}:build", *FAST, "--seed", "1", "--seed", "2"),
    )
    rows = json.loads(ran.out)
    assert all(list(row) == KEYS for row in rows)
    assert [(row["method"], row["seed"]) for row in rows] == [
        (method, seed) for seed in (1, 2) for method in ("head", "masks")
    ]
    for row in rows:
        assert (row["bits_per_weight"] is None) == (row["method"] == "head")
        assert 0 <= row["accuracy"] <= 100
    assert "±" in ran.err


def test_wrong_choices_are_refused_before_anything_is_trained(piggyback, colours):
    for arguments, told in (
        (["--data", str(colours)], "expected NAME=DIR"),
        (["--data", f"a/b={colours}"], "task name 'a/b'"),
        (["--data", f"a={colours}", "--data", f"a={colours}"], "a different NAME for each"),
        (["--data", f"a={colours}", "--methods", "mask"], "masks"),
        (["--data", "a=nowhere"], "'nowhere': no such directory"),
    ):
        piggyback("compare", *arguments, "--out", "out").refuses(told)
    assert not Path("out").exists()


def test_all_methods_see_a_task_s_images_at_the_task_s_own_size(piggyback, toy, colours):
    for file in colours.rglob("*.png"):
        larger = Path("larger") / file.relative_to(colours)
        larger.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((100, 120)).save(larger)
    ran = piggyback(
        *("compare", "--data", f"a={colours}", "--data", "b=larger", "--methods", "head,masks"),
        *("--backbone", f"{toy}:large", *FAST, "--epochs", "1", "--out", "out"),
    )
    assert ran.code == 0, ran.err
    assert "4 tasks: each as accurate as when it was trained" in ran.out
    for task, side in (("a", 64), ("b", 96)):
        for method in ("head", "masks"):
            kept = json.loads(Path(f"out/runs/{task}/{method}-seed0/result.json").read_text())
            assert kept["identity"]["recipe"]["image_size"] == side
        held = load_file(f"out/tasks/{task}.safetensors").info.preprocessing
        assert held is not None
        assert held.image_size == side


def test_plots_are_an_extra_that_is_asked_for_before_any_work(piggyback, toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for line in (
        ("compare", "--data", "a=nowhere", "--backbone", f"{toy}:build"),
        ("experiment", "run", "table2", "--toy"),
    ):
        piggyback(*line).refuses(".[plots]")
