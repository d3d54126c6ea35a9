"""A report's folder: the page names every picture that is there, and escapes what it is given."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from piggyback.train.report import Outcome, compared, report_on

pytest.importorskip("matplotlib")
from piggyback.lab.tables.report import write_report

KINDS = {
    "classification": {"confusion.png", "calibration.png", "coverage.png", "wrong.png"},
    "multilabel": {"calibration.png", "wrong.png"},
    "regression": {"scatter.png", "wrong.png"},
    "segmentation": {"confusion.png", "wrong.png"},
}


def outcome(kind: str) -> Outcome:
    generator, classes = np.random.default_rng(0), ("a", "<b>")
    chances = generator.dirichlet((1, 1), 30)
    truth = {
        "classification": generator.integers(0, 2, 30),
        "multilabel": generator.random((30, 2)) < 0.5,
        "regression": generator.normal(size=(30, 2)),
        "segmentation": generator.integers(1, 9, (30, 2, 2)),
    }[kind]
    return Outcome("x", kind, classes, chances, truth)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_has_a_page_json_csv_and_the_pictures_of_its_kind(
    kind: str, tmp_path: Path
) -> None:
    found = outcome(kind)
    other = compared(found, replace(found, task="y"))
    names = [f"{i}.png" for i in range(30)]
    files = write_report(
        tmp_path,
        report_on(found),
        names,
        lambda i: np.full((8, 8, 3), i, dtype=np.uint8),
        {"backbone": "toy & co"},
        other,
    )
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    assert {name for name in files if name.endswith(".png")} == KINDS[kind]
    page = (tmp_path / "index.html").read_text()
    assert set(re.findall(r"<img src=(\S+)", page)) == KINDS[kind]
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["kind"] == kind
    assert values["compared"]["samples"] == 30
    rows = list(csv.reader((tmp_path / "answers.csv").open()))
    assert [row[0] for row in rows[1:]] == names
    assert len(list(csv.reader((tmp_path / "classes.csv").open()))) == 3
