"""Numbers for Prometheus, lines for the log, headers for the page."""

from __future__ import annotations

import io
import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from piggyback.serve.http.logs import logging_to
from support.fake_engine import FakeEngine, served, wait_until

PREDICT = "/v1/tasks/colours/predict"


@pytest.fixture
def server():
    with served(FakeEngine()) as running:
        yield running


def samples(server):
    text = httpx.get(server.address + "/metrics").text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_the_engine_counted(server):
    httpx.post(server.address + PREDICT, files={"image": b"red"})
    found = samples(server)
    colours, latency = ("task", "colours"), "piggyback_latency_seconds"
    wanted = {
        ("requests_total", ("outcome", "ok"), colours): 1,
        ("latency_seconds_count", colours): 2,
        ("latency_seconds_bucket", ("le", "0.005"), colours): 1,
        ("latency_seconds_bucket", ("le", "+Inf"), colours): 2,
        ("batch_images_count",): 2, ("batch_images_sum",): 4, ("switches_total",): 3,
        ("batches_total", ("tier", "dense")): 4, ("loads_total",): 5,
        ("load_seconds_total",): 0.25, ("load_failures_total",): 1,
        ("evictions_total", ("tier", "dense")): 2, ("memory_bytes", ("tier", "packed")): 50,
        ("memory_budget_bytes",): 1000, ("tasks", ("tier", "disk")): 0, ("queue_depth",): 0,
        ("queue_limit",): 16, ("ready",): 1,
    }  # fmt: skip
    assert {key: found["piggyback_" + key[0], *key[1:]] for key in wanted} == wanted
    assert found[latency + "_sum", colours] == pytest.approx(0.302)
    assert found["piggyback_tasks_reachable",] == 1
    server.engine.problem = "the folder is gone"
    assert samples(server)["piggyback_tasks_reachable",] == 0
    server.engine.problem = None


def test_requests_by_route_and_status(server):
    httpx.post(server.address + PREDICT, files={"image": b"red"})
    httpx.post(server.address + PREDICT, files={"image": b"no"})
    httpx.get(server.address + "/nothing")
    found = samples(server)

    def count(route, method, status):
        labels = (("method", method), ("route", route), ("status", status))
        return found.get(("piggyback_http_requests_total", *labels))

    assert count("/v1/tasks/{task}/predict", "POST", "200") == 1
    assert count("/v1/tasks/{task}/predict", "POST", "400") == 1
    assert count("other", "GET", "404") == 1
    assert found["piggyback_http_in_flight",] == 1  # the one that asks


def test_nothing_that_a_client_made_up_becomes_a_label(server):
    for i in range(5):
        httpx.post(f"{server.address}/v1/tasks/made-up-{i}/predict", files={"image": b"red"})
        httpx.get(f"{server.address}/made-up-{i}")
        httpx.request(f"MADEUP{i}", server.address + "/health")
    text = httpx.get(server.address + "/metrics").text
    assert "made-up" not in text
    assert "MADEUP" not in text


def test_one_line_of_json_for_each_request(server):
    stream = io.StringIO()
    with logging_to(stream):
        httpx.post(
            server.address + PREDICT,
            files={"image": b"red pixels"},
            headers={"X-Request-ID": "abc.1"},
        )
        httpx.get(server.address + "/none%1b[31m%0a?secret=1")
        httpx.post(server.address + "/v1/tasks/unknown/predict", files={"image": b"red"})
        wait_until(lambda: stream.getvalue().count("\n") == 3)  # each comes after its answer
    good, lost, unknown = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert good["id"] == "abc.1"
    assert (good["method"], good["status"], good["task"]) == ("POST", 200, "colours")
    assert good["bytes"] > 10
    assert good["ms"] > 0
    assert good["time"].endswith("Z")
    assert (lost["status"], lost["task"]) == (404, None)
    assert unknown["task"] is None
    assert "\x1b" not in stream.getvalue()
    assert "pixels" not in stream.getvalue()
    assert "secret" not in stream.getvalue()


@pytest.mark.parametrize("given", ["with space", "", "x" * 65, "a;b", "é"])
def test_a_request_id_of_its_own_where_the_given_one_will_not_do(server, given):
    headers = {"X-Request-ID": given.encode("latin-1")}
    done = httpx.get(server.address + "/health", headers=headers)
    assert done.headers["x-request-id"] not in ("", given)
    again = httpx.get(server.address + "/health", headers=headers)
    assert again.headers["x-request-id"] != done.headers["x-request-id"]


def test_a_sane_request_id_comes_back(server):
    done = httpx.get(server.address + "/nothing", headers={"X-Request-ID": "trace-1"})
    assert done.headers["x-request-id"] == "trace-1"


@pytest.mark.parametrize("path", ["/", "/health", "/v1/tasks", "/nothing", "/page/page.js"])
def test_headers_for_browsers(server, path):
    done = httpx.get(server.address + path, headers={"Origin": "http://elsewhere.example"})
    assert done.headers["x-content-type-options"] == "nosniff"
    assert done.headers["content-security-policy"].startswith("default-src 'self';")
    assert "access-control-allow-origin" not in done.headers
    assert "server" not in done.headers


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page/page.js", "javascript"), ("/page/page.css", "text/css")],
)
def test_files_of_the_page(server, path, kind):
    done = httpx.get(server.address + path)
    assert done.status_code == 200
    assert kind in done.headers["content-type"]
    assert done.headers["cache-control"] == "no-cache"
    again = httpx.get(server.address + path, headers={"If-None-Match": done.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    first = httpx.head(server.address + path)
    assert (first.status_code, first.content) == (200, b"")
    assert int(first.headers["content-length"]) == len(done.content)


@pytest.mark.parametrize(
    "name",
    ["..%2fapp.py", "%2e%2e/app.py", "..%5capp.py", "app.py", "page.js%00", "", ".", "page.py"],
)
def test_no_other_files(server, name):
    done = httpx.get(f"{server.address}/page/{name}")
    assert (done.status_code, done.json()["error"]["code"]) == (404, "not_found")
