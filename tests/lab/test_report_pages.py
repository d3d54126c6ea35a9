"""A report's folder: the page names every picture that is there, and escapes what it is given."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

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
def test_a_folder_has_a_page_json_csv_and_the_pictures_of_its_kind(kind, tmp_path):
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
    if kind == "classification":  # the two measures of how sure an answer is have two names
        assert rows[0][3:] == ["probability", "confidence"]
        p = float(rows[1][3])
        entropy = -sum(x * np.log2(x) for x in (p, 1 - p))
        assert float(rows[1][4]) == pytest.approx(1 - entropy, abs=1e-5)
    assert len(list(csv.reader((tmp_path / "classes.csv").open()))) == 3


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_the_surest_mistakes_of_texts_are_told_as_texts(kind, tmp_path):
    made = report_on(outcome(kind))
    texts = [f"text {i} <script>" for i in range(30)]
    files = write_report(tmp_path, made, texts, None, {})
    assert "wrong.png" not in files
    page = (tmp_path / "index.html").read_text()
    assert "<script>" not in page
    told = re.findall(r"<td>text (\d+) &lt;script&gt;</td>", page)
    assert [int(i) for i in told] == list(made.wrong[:24])


def test_texts_with_wrong_spans_have_them_marked_in_both_ways(tmp_path):
    texts = ["we like New  York <b>", "all is right", "cut off here"]
    tags = [
        (["O", "O", "B-<a>", "I-<a>", "O"], ["B-x", "O", "O", "B-<a>", "B-x"]),
        (["O"] * 3, ["O"] * 3),
        (["B-x", "O", "O"], ["O"] * 3),
    ]
    classes = ("B-<a>", "B-x", "I-<a>", "I-x", "O")
    counts = np.array([[[0, 1, 1], [0, 0, 2]], [[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]])
    found = Outcome("x", "tokens", classes, np.zeros((3, 0)), counts, tags=tags)
    write_report(tmp_path, report_on(found), texts, None, {})
    page = (tmp_path / "index.html").read_text()
    a, x = "<small>&lt;a&gt;</small></mark>", "<small>x</small></mark>"
    truth = f"we like <mark>New  York {a} &lt;b&gt;"
    answer = f"<mark>we {x} like New  <mark>York {a} <mark>&lt;b&gt; {x}"
    assert f"<tr><td>{truth}</td><td>{answer}</td></tr>" in page
    assert f"<tr><td><mark>cut {x} off here</td><td>cut off here</td></tr>" in page
    assert "all is right" not in page
    assert "<b>" not in page
