"""``piggyback experiment``: what is listed, run, resumed and shown, and one line for each mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from piggyback.lab.experiments.manifest import shipped

TOY = ("gtsrb-lite0", "--toy", "--tasks", "dtd", "--methods", "head;masks, ternary")


def test_the_list_has_every_experiment_and_what_it_lacks(piggyback):
    ran = piggyback("experiment", "list")
    assert (ran.code, ran.err) == (0, "")
    assert all(name in ran.out for name in shipped())
    rows = json.loads(piggyback("experiment", "list", "--json").out)
    assert [row["name"] for row in rows] == list(shipped())
    (table2,) = [row for row in rows if row["name"] == "table2"]
    assert table2["missing"] == table2["tasks"] == ["cubs", "cars", "flowers", "wikiart", "sketch"]


def test_a_dry_run_has_the_costs_and_what_is_missing_and_writes_nothing(piggyback):
    given = ("table2", "--tasks", "cubs,cars", "--methods", "masks;PackNet", "--dry-run")
    ran = piggyback("experiment", "run", *given)
    assert (ran.code, ran.err) == (0, "")
    assert "9 trainings on 2 tasks: cubs, cars" in ran.out
    assert ran.out.count("missing: data set") == 2
    content = json.loads(piggyback("experiment", "run", *given, "--json").out)
    assert [line["runs"] for line in content["lines"]] == [3, 6]
    assert content["missing"].keys() == {"cubs", "cars"}
    assert not list(Path().iterdir())


def test_run_then_show_then_run_again(piggyback):
    ran = piggyback("experiment", "run", *TOY)
    assert ran.code == 0
    assert "dtd head seed 0: done" in ran.err
    folder = Path("experiments/gtsrb-lite0-toy")
    before = (folder / "table.md").read_text()
    assert "| lite0 | masks, ternary |" in before
    again = piggyback("experiment", "run", *TOY)
    assert (again.code, again.err) == (0, "")
    (folder / "table.md").unlink()
    shown = piggyback("experiment", "show", *TOY)
    assert (shown.code, shown.out) == (0, ran.out)
    assert (folder / "table.md").read_text() == before
    rows = json.loads(piggyback("experiment", "show", *TOY, "--json").out)
    assert [row["label"] for row in rows] == ["head", "masks, ternary"]
    more = piggyback("experiment", "show", "gtsrb-lite0", "--toy", "--tasks", "dtd,gtsrb",
                     "--methods", "head")  # fmt: skip
    assert "1 training is not finished" in more.out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("run", "tabel2"), "experiment 'tabel2': expected one of .* did you mean 'table2'"),
        (("run", "none.yaml"), "experiment 'none.yaml' cannot be read: No such file"),
        (("run", "table2", "--tasks", "cub"), "--tasks 'cub': expected some of cubs,cars"),
        (("run", "table2", "--methods", "mask"), "--methods 'mask': expected some of classifier"),
        (("run", "table2", "--seed", "1", "--seed", "1"), r"seeds: .* each once, found \[1, 1\]"),
        (("run", *TOY, "--workers", "0"), "workers 0: expected 1 or more"),
        (("run", "table2", "--tasks", "cubs"), "data set 'cubs' .* looked for cubs/.* get CUB_200"),
        (("show", "table2"), "experiment 'table2': no folder 'experiments/table2'; give --out"),
    ],
)
def test_mistakes_are_told_in_one_line(piggyback, given, message):
    ran = piggyback("experiment", *given)
    assert (ran.code, ran.out) == (1, "")
    (line,) = ran.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)
    assert not list(Path().iterdir())
