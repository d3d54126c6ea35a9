"""Every benchmark runs, on toy sizes, and reports what it should; no time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"


def run(*arguments: str | Path) -> str:
    line = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_benchmarks_run_and_report(tmp_path):
    page, rows = tmp_path / "page.md", tmp_path / "rows.json"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    screen = run("benchmarks.run", "--quick", "--json", rows, "--markdown", page)
    found = json.loads(rows.read_text())
    kinds = {
        "step",
        "images/s",
        "memory",
        "switch",
        "forward",
        "mask",
        "file",
        "release",
        "start-up",
    }
    assert {row["name"].split()[0] for row in found} == kinds
    for row in found:
        assert row["ratio"] > 0
        good = row["ratio"] >= row["aim"] if row["at_least"] else row["ratio"] <= row["aim"]
        assert row["meets"] is good
        assert row["on"]["torch"]
        assert row["name"] in screen
        assert f"| {row['name']} |" in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("\nafter\n")
    assert "old" not in page.read_text()


def test_memory_of_training_is_told_by_method():
    table = run("benchmarks.training_memory", "--quick")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    held = {(method, inner): float(size) for method, inner, size, *_ in rows[1:]}
    assert held["LoRA, rank 8", "Adam"] < held["fine-tuning", "Adam"] < held["masks", "Adam"]
    assert held["masks", "Adafactor"] < held["masks", "RMSprop"] < held["masks", "Adam"]


def test_one_benchmark_is_a_command_of_its_own(tmp_path):
    run("benchmarks.mask_bytes", "--quick", "--json", tmp_path / "rows.json")
    assert all(
        "mask bytes" in row["name"] for row in json.loads((tmp_path / "rows.json").read_text())
    )
