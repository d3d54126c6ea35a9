"""A whole cluster on this machine: Ray, two replicas, HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support.colour_tasks import red_is

HELPERS = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What cluster_child.py saw of a whole cluster."""
    pytest.importorskip("ray.serve")
    pytest.importorskip("httpx")
    folder = tmp_path_factory.mktemp("cluster")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [HELPERS, *sys.path]
    done = subprocess.run(
        [sys.executable, str(HELPERS / "support" / "cluster_child.py"), str(folder), str(port)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(str, paths)))},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "seen.json").read_text())
    assert "error" not in found, found["error"]
    found["log"] = done.stderr + done.stdout
    return found


@pytest.mark.slow
class TestWholeCluster:
    """Two replicas on this machine, seen over HTTP: takes a minute or two, and 3 GB."""

    @pytest.mark.parametrize("when", ["answers", "dropped", "after_a_death", "after_replacement"])
    def test_every_answer_is_right(self, seen, when):
        assert len(seen[when]) >= 4
        assert [(task, said) for task, said in seen[when] if said != red_is(task)] == []

    def test_what_is_in_flight_at_the_end_is_answered_and_what_comes_later_is_refused(self, seen):
        code, text = seen["in flight at the end"]
        assert (code, red_is("t1") in text) == (200, True), text
        assert seen["later"] == 503

    def test_tasks_are_spread_over_both_replicas(self, seen):
        one, other = seen["asked"]
        assert sum(one.values()) + sum(other.values()) == len(seen["answers"])
        # A task stays where it was: of six requests for each, few go to the other replica.
        assert min(len(one), len(other)) >= 2
        assert sum(min(one.get(f"t{i}", 0), other.get(f"t{i}", 0)) for i in range(8)) <= 12

    def test_a_file_put_into_the_folder_is_noticed(self, seen):
        assert seen["waited"]["the new file"] < 10

    def test_an_upload_and_a_deletion_reach_both_replicas_at_once(self, seen):
        code, replicas, answers = seen["put"]
        assert (code, replicas) == (201, [10, 10])
        assert answers == [["t9", red_is("t9")]] * 4
        assert seen["gone"] == [200, 204, [9, 9], 404]

    def test_one_image_is_answered_by_several_tasks(self, seen):
        (answered,) = seen["several"]["images"]
        assert answered["inferred"] is False
        assert {answer["task"] for answer in answered["answers"]} == {"t1", "t2"}

    def test_bad_requests_are_refused_as_by_one_process(self, seen):
        refused = seen["refused"]
        assert refused["unknown"][0] == 404
        assert "did you mean" in refused["unknown"][1]["message"]
        assert refused["no image"] == "bad_image"
        assert refused["no task file"] == [422, "bad_task_file"]
        assert refused["no token"] == 401

    def test_a_replica_that_died_is_replaced(self, seen):
        assert seen["replaced"] == 1

    def test_what_listens_beyond_loopback_wants_a_token(self, seen):
        assert set(seen["open ports"]) <= {"UNAUTHENTICATED"}

    def test_requests_are_logged_as_json(self, seen):
        lines = [line for line in seen["log"].splitlines() if '"status":404' in line]
        assert lines
        assert json.loads(lines[0][lines[0].index("{") :])["path"].startswith("/v1/tasks/")

    def test_it_says_when_it_is_ready(self, seen):
        assert seen["said"].startswith("ready at http://127.0.0.1:")
