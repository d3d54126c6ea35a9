"""Many threads, many tasks, little memory: no answer is another task's, none is lost, nothing grows."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.serving_load import _checks as load_checks
from benchmarks.serving_parts import Part, read
from benchmarks.serving_report import markdown, plot, put_into
from benchmarks.serving_setup import flipped
from benchmarks.serving_telling import telling_tasks
from benchmarks.serving_traffic import EngineSide, Seen, arrivals, chances, middle, offer

from support.telling import INPUT, engine_over, expected, write_tasks

ROOT = Path(__file__).parents[2]
THREADS = 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tasks(tmp_path / "tasks", 30)
    return tmp_path / "tasks"


@pytest.mark.parametrize(("live", "packed"), [(4, 45), (2, 6)], ids=["in memory", "evicted"])
def test_many_threads_get_the_answers_of_the_tasks_they_ask(folder, live, packed):
    with engine_over(folder, 2**30, workers=2) as engine:
        engine.predict(INPUT, "t0")
        bits = engine.task("t0").memory_bytes
        copy = engine.stats().bytes["dense"] // 2

    def ask(number: int) -> int:
        wrong = 0
        for i in np.random.default_rng(number).integers(30, size=60).tolist():
            answer = engine.predict(INPUT, f"t{i}", top_k=1, timeout=60)
            wrong += (answer.task, answer.classes[0]) != (f"t{i}", expected(f"t{i}"))
        return wrong

    budget = live * copy + packed * bits + bits // 2
    engine = engine_over(folder, budget, workers=2)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            assert sum(pool.map(ask, range(THREADS))) == 0
        stats = engine.stats()
    finally:
        engine.close(
            drain=False
        )  # an answer that never comes is to fail here, not to be waited for
    assert sum(n for (_, outcome), n in stats.requests.items() if outcome == "ok") == THREADS * 60
    assert stats.queue_depth == 0
    assert sum(stats.bytes.values()) <= budget
    assert (stats.evictions.get("packed", 0) > 50) == (packed < 30)


# -- the load test's own parts -----------------------------------------------------------------


def test_zipf_asks_the_first_twice_as_often_as_the_second():
    shares = chances("zipf", 1000)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] / shares[1] == pytest.approx(2)
    assert shares[0] / shares[9] == pytest.approx(10)


def test_arrivals_come_at_the_rate_and_do_not_depend_on_each_other():
    gaps = np.diff(arrivals(500.0, 60.0, seed=3))
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as in a Poisson process
    assert np.array_equal(np.diff(arrivals(500.0, 60.0, seed=3)), gaps)


def test_flipped_tasks_differ_in_the_share_of_bits_and_are_loaded_like_any(folder):
    task = telling_tasks(1)["t0"]
    other = flipped(task, 0.25, seed=1)
    changed = sum(
        int(np.unpackbits((mask.keep ^ other.masks[name].keep).numpy()).sum())
        for name, mask in task.masks.items()
    )
    assert changed == round(0.25 * task.weights)
    assert torch.equal(
        flipped(task, 0.25, seed=1).masks["body.weight"].keep, other.masks["body.weight"].keep
    )


def test_traffic_is_counted_as_it_was_answered(folder):
    with engine_over(folder, 2**26, workers=1) as engine:
        names = [f"t{i}" for i in range(5)]
        seen = offer(
            EngineSide(engine), names, "zipf", 200.0, [INPUT], seconds=0.5, settle=0.1, seed=0
        )
        ok = sum(n for (_, outcome), n in engine.stats().requests.items() if outcome == "ok")
    assert ok == len(arrivals(200.0, 0.6, seed=0))
    assert 0 < seen.answered <= ok / 0.5
    assert seen.p50 <= seen.p99
    assert (seen.refused, seen.errors) == (0, 0)
    assert sum(seen.tiers.values()) == pytest.approx(1)


def test_a_queue_that_is_full_is_seen_as_refusals(folder):
    with engine_over(folder, 2**26, workers=1, max_queue=4, max_batch=1) as engine:
        side = EngineSide(engine)
        seen = offer(
            side, ["t0"], "uniform", 50_000.0, [INPUT], seconds=0.1, settle=0.0, seed=0, burst=20
        )
    assert seen.refused > 0
    assert seen.answered < seen.offered


def test_checks_compare_rounds_in_pairs_and_reports_hold_them(tmp_path):
    one = [Seen(offered=10.0, answered=a, p50=1.0, p99=2.0) for a in (100.0, 200.0, 400.0)]
    many = [Seen(offered=10.0, answered=a, p50=1.0, p99=3.0) for a in (90.0, 100.0, 360.0)]
    found = {"equal": {(1, "uniform"): one, (6, "uniform"): many, (6, "zipf"): many}}
    checks = load_checks(found, 6)
    assert [row.ratio for row in checks] == [0.9, 0.9]
    assert [row.aim for row in checks] == [0.8, 0.9]
    assert middle(many).answered == 100.0

    rows = [{"regime": "equal", "tasks": 6, "traffic": "zipf", "answered/s": 90.0}]
    rows[0] |= {"p50 ms": 1.0, "p99 ms": 2.0}
    part = Part("load", rows, checks, "About.", {"cores": 2})
    part.write(tmp_path)
    again = read(tmp_path, "load")
    assert again == part
    assert read(tmp_path, "http") is None
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- serving: begin -->\nthe last run\n<!-- serving: end -->\nafter\n")
    put_into(page, [again])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "the last run" not in text
    assert markdown([part]) in text
    assert "| 6 tasks, zipf, equal | 0.900 | >= 0.9 |" in text
    plot([part], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


# -- minutes -----------------------------------------------------------------------------------


def parts_of(tmp_path: Path, *arguments: str) -> dict[str, dict[str, object]]:
    line = [sys.executable, "-m", "benchmarks.serving", *arguments, "--out", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, line), "--work", str(tmp_path / "work")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()}


@pytest.mark.slow
def test_a_million_calls_and_ten_thousand_evictions(tmp_path):
    part = parts_of(tmp_path, "stress", "--backbone", "timm:test_resnet", "--size", "32")["stress"]
    calls, evicted, network = part["rows"]
    assert calls["calls"] >= 1_000_000
    assert min(evicted["evictions"], network["evictions"]) >= 10_000
    assert [row["wrong answers"] for row in part["rows"]] == [0, 0, 0]
    for check in part["checks"]:
        assert check["meets"], check


@pytest.mark.slow
def test_every_section_runs_on_toy_sizes_and_reports(tmp_path):
    page, picture = tmp_path / "page.md", tmp_path / "plot.png"
    page.write_text("<!-- serving: begin -->\n<!-- serving: end -->\n")
    reports = ("--markdown", page, "--plot", picture)
    parts = parts_of(tmp_path, "--quick", *map(str, reports))
    assert set(parts) == {"load", "against", "tricks", "cold", "stress", "packed", "http"}
    for name, part in parts.items():
        assert part["rows"], name
        assert part["on"]["torch"]
        for row in part["rows"]:
            assert not row.get("errors"), row
        for check in part["checks"]:
            assert f"| {check['name']} |" in page.read_text()
    assert picture.stat().st_size > 10_000
