"""The real engine behind the real server."""

from __future__ import annotations

import io

import httpx
import pytest
from PIL import Image

from piggyback.serve.engine import Engine
from piggyback.serve.options import EngineOptions
from support.colour_tasks import Colours, picture, task_file
from support.fake_engine import served

TOKEN = {"Authorization": "Bearer s3cret"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "plain.safetensors").write_bytes(task_file("plain"))
    options = EngineOptions(watch_s=0, device="cpu", max_pixels=10_000, precision="float32")

    def start():
        return Engine(Colours(), folder, "64MiB", options)

    with served(start, token="s3cret") as running:
        running.folder = folder
        yield running


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.address, headers=TOKEN, timeout=30) as made:
        yield made


def bomb():
    file = io.BytesIO()
    Image.new("1", (3_000, 3_000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (lambda: picture("red")[:-30], 400, "bad_image"),
        (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "bad_image"),
        (bomb, 413, "too_large"),
    ],
)
def test_images_that_are_none(client, make, status, code):
    done = client.post("/v1/tasks/plain/predict", files={"image": make()})
    assert (done.status_code, done.json()["error"]["code"]) == (status, code), done.text
    assert "\n" not in done.json()["error"]["message"]


def test_a_task_is_uploaded_replaced_and_deleted(client, server):
    def ask():
        done = client.post("/v1/tasks/new/predict", files={"image": picture("red")})
        return done.json()["answers"][0]["classes"][0]["class"]

    added = client.put("/v1/tasks/new", content=task_file("new"))
    assert added.status_code == 201
    assert ask() == "new red"
    replaced = client.put("/v1/tasks/new", content=task_file("new", 1))
    assert replaced.status_code == 200
    assert replaced.json()["version"] != added.json()["version"]
    assert client.get("/v1/tasks/new").json()["version"] == replaced.json()["version"]
    assert ask() == "new lime"
    deleted = client.delete("/v1/tasks/new")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert not (server.folder / "new.safetensors").exists()
    assert client.delete("/v1/tasks/new").status_code == 404
    done = client.post("/v1/tasks/new/predict", files={"image": picture("red")})
    assert (done.status_code, done.json()["error"]["code"]) == (404, "unknown_task")


def test_metrics_know_the_tasks_that_are_there_and_no_others(client):
    client.post("/v1/tasks/plain/predict", files={"image": picture("red")})
    client.post("/v1/tasks/palin/predict", files={"image": picture("red")})
    client.post("/v1/predict?task=palin", files={"image": picture("red")})
    text = client.get("/metrics").text
    assert 'piggyback_requests_total{outcome="ok",task="plain"}' in text
    assert 'piggyback_latency_seconds_bucket{le="+Inf",task="plain"}' in text
    assert "palin" not in text
