"""``piggyback evaluate --report`` and ``--compare``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from support.cli_toys import FAST

pytest.importorskip("matplotlib")


def test_a_report_measures_what_evaluate_says(piggyback, trained, colours):
    line = ("evaluate", trained, "--data", colours, "--backbone")
    toy = json.loads(piggyback("inspect", trained, "--json").out)["backbone"]["source"]
    ran = piggyback(*line, toy, "--report", "found", "--json")
    assert ran.code == 0
    assert "found/index.html" in ran.err
    values = json.loads(Path("found/report.json").read_text())
    said = json.loads(ran.out)
    assert values["numbers"]["accuracy"]["value"] == pytest.approx(said["accuracy"], abs=1e-3)
    assert values["numbers"]["log_loss"]["value"] == pytest.approx(said["loss"], abs=1e-4)
    assert values["samples"] == 18


def test_a_report_among_the_images_would_be_a_class_and_is_refused(piggyback, trained, colours):
    shutil.copytree(colours / "test", "flat")
    line = ("evaluate", trained, "--data", "flat")
    piggyback(*line, "--report", "flat/report").refuses(
        "--report 'flat/report'", "among the images"
    )
    piggyback("check", "flat", "--out", "flat/red/../found").refuses("--out", "among the images")
    piggyback("compare", "--data", "a=flat", "--out", "flat").refuses("--out", "among the images")
    assert sorted(each.name for each in Path("flat").iterdir()) == ["blue", "green", "red"]


def test_two_tasks_are_compared_on_the_same_images(piggyback, trained, colours, toy):
    network = ("--backbone", f"{toy}:build")
    head = ("train", "--data", colours, *network, *FAST, "--method", "head", "--name", "alone")
    assert piggyback(*head, "--out", "alone.safetensors").code == 0
    line = ("evaluate", trained, "--data", colours, *network, "--compare")
    ran = piggyback(*line, "alone.safetensors", "--json")
    gap = json.loads(ran.out)["compared"]
    assert gap["samples"] == 18
    assert 0 < gap["mcnemar"]["p"] <= 1
    assert "alone" in gap
    assert "McNemar" in ran.err
    same = json.loads(piggyback(*line, trained, "--json").out)["compared"]
    assert same["difference"]["value"] == 0
