"""What each route answers."""

from __future__ import annotations

import base64

import httpx
import pytest

from piggyback.serve.http import schemas
from piggyback.serve.http.limits import Limits
from piggyback.serve.http.openapi import DESCRIBED
from support.fake_engine import FakeEngine, served

TOKEN = {"Authorization": "Bearer s3cret"}


@pytest.fixture(scope="module")
def server():
    engine = FakeEngine()
    with served(engine, token="s3cret", limits=Limits(tasks=3)) as running:
        running.engine = engine
        yield running


@pytest.fixture
def client(server):
    server.engine.asked.clear()
    with httpx.Client(base_url=server.address, headers=TOKEN) as made:
        yield made


def classes(answer):
    return [one["class"] for one in answer["classes"]]


def base64_of(data):
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif"]
)
def test_a_body_that_is_an_image(client, server, kind):
    done = client.post(
        "/v1/tasks/colours/predict", content=b"green", headers={"Content-Type": kind}
    )
    assert done.status_code == 200
    (answer,) = schemas.AnswersBody.model_validate_json(done.text).answers
    assert [one.name for one in answer.classes] == ["green", "red", "blue"]
    assert server.engine.asked == [("colours", b"green", 5)]


def test_a_form_with_several_images_and_a_field(client, server):
    files = [("image", ("a.png", b"red\r\n--", "image/png")), ("image", ("b.png", b"blue"))]
    done = client.post("/v1/tasks/colours/predict", files=files, data={"top_k": "1"})
    assert [classes(answer) for answer in done.json()["answers"]] == [["red"], ["blue"]]
    assert server.engine.asked == [("colours", b"red\r\n--", 1), ("colours", b"blue", 1)]


@pytest.mark.parametrize("many", [False, True])
def test_json(client, many):
    body = {"images": [base64_of(b"blue")] * 2} if many else {"image": base64_of(b"blue")}
    done = client.post("/v1/tasks/signs/predict", json={**body, "top_k": 2})
    answers = done.json()["answers"]
    assert [classes(answer) for answer in answers] == [["blue", "red"]] * (1 + many)
    assert {answer["task"] for answer in answers} == {"signs"}


def test_top_k_in_the_query(client):
    done = client.post("/v1/tasks/signs/predict?top_k=1", files={"image": b"red"})
    assert classes(done.json()["answers"][0]) == ["red"]


def test_a_task_is_inferred_when_none_is_named(client, server):
    done = client.post("/v1/predict", files={"image": b"red"})
    (image,) = schemas.InferencesBody.model_validate_json(done.text).images
    assert image.inferred is True
    assert {answer.task for answer in image.answers} == {"colours", "signs"}
    assert image.task == image.answers[0].task


@pytest.mark.parametrize("where", ["query", "form", "json"])
def test_several_tasks_on_each_image(client, where):
    names = ["signs", "colours"]
    if where == "json":
        body = {"json": {"images": [base64_of(b"red"), base64_of(b"blue")], "tasks": names}}
    else:
        body = {"files": [("image", b"red"), ("image", b"blue")]}
        body |= {"params": {"task": names}} if where == "query" else {"data": {"task": names}}
    done = client.post("/v1/predict", **body)
    images = done.json()["images"]
    assert [[a["task"] for a in image["answers"]] for image in images] == [names, names]
    assert [classes(image["answers"][0])[0] for image in images] == ["red", "blue"]
    assert [image["inferred"] for image in images] == [False, False]


def test_too_many_tasks_to_ask_all_of_them(client, server):
    server.engine.files |= {"a": b"a", "b": b"b"}
    try:
        done = client.post("/v1/predict", files={"image": b"red"})
        some = client.post("/v1/predict?task=a&task=b", files={"image": b"red"})
    finally:
        del server.engine.files["a"], server.engine.files["b"]
    assert done.status_code == 422
    assert "name some" in done.json()["error"]["message"]
    assert some.status_code == 200


def test_the_list_of_tasks(client):
    found = schemas.TasksBody.model_validate_json(client.get("/v1/tasks").text)
    assert [task.name for task in found.tasks] == ["colours", "signs"]
    assert found.backbone.source == "timm:none"
    assert found.refused == {"broken.safetensors": "damaged"}
    assert found.limits.tasks == 3
    one = schemas.TaskBody.model_validate_json(client.get("/v1/tasks/signs").text)
    assert one == found.tasks[1]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/someone/models/mine.py:build", "mine.py:build"),
        ("C:\\models\\mine.py:build", "mine.py:build"),
        ("transformers:microsoft/resnet-50", "transformers:microsoft/resnet-50"),
    ],
)
def test_a_network_of_a_file_does_not_tell_where_the_file_is(client, server, source, shown):
    server.engine.source = source
    try:
        found = client.get("/v1/tasks").json()["backbone"]["source"]
    finally:
        del server.engine.source
    assert found == shown


def test_a_task_is_added_replaced_and_deleted(client):
    added = client.put("/v1/tasks/new", content=b"task 1")
    replaced = client.put("/v1/tasks/new", content=b"task 2")
    assert [added.status_code, replaced.status_code] == [201, 200]
    assert added.json()["version"] != replaced.json()["version"]
    assert client.get("/v1/tasks/new").json() == replaced.json()
    deleted = client.delete("/v1/tasks/new")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert client.get("/v1/tasks/new").status_code == 404
    assert client.delete("/v1/tasks/new").status_code == 404


def test_health(client):
    assert client.get("/health").json() == {"status": "ready"}


def test_openapi_describes_every_route(client):
    document = client.get("/openapi.json").json()
    found = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert found == {(each.method, each.path) for each in DESCRIBED}
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert document["security"] == [{"token": []}, {}]
    predict = document["paths"]["/v1/tasks/{task}/predict"]["post"]
    assert {"multipart/form-data", "application/json", "image/webp"} <= set(
        predict["requestBody"]["content"]
    )
    assert [p["name"] for p in predict["parameters"]] == ["task", "top_k"]
    assert {"200", "404", "413", "429", "504"} <= set(predict["responses"])
    schema = predict["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/AnswersBody"}


@pytest.mark.parametrize("each", [d for d in DESCRIBED if d.answer], ids=lambda d: d.path)
def test_examples_are_such_as_the_schemas_say(each):
    assert each.answer.model_validate(each.example).model_dump(by_alias=True, exclude_none=True)
