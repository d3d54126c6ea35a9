"""What each route answers, and what may be built on the application."""

from __future__ import annotations

import base64
import importlib
import re
import sys

import httpx
import pytest
from fastapi import FastAPI, HTTPException, UploadFile
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.testclient import TestClient

import piggyback.serve.http
from piggyback import schemas
from piggyback.errors import InputError, MissingExtraError
from piggyback.serve.http import Limits, app_from_env, create_app
from piggyback.serve.http.routes import get_engine
from piggyback.serve.options import EngineOptions
from support.fake_engine import FakeEngine, served, wait_until

TOKEN = {"Authorization": "Bearer s3cret"}


@pytest.fixture(scope="module")
def server():
    with served(FakeEngine(), token="s3cret", limits=Limits(tasks=3)) as running:
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
    "kind",
    [
        "image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif", "image/jpg", "IMAGE/JPEG; q=1",
        "image/pjpeg", "image/x-png", "application/octet-stream", "", None,
    ],
)  # fmt: skip
def test_a_body_that_is_an_image(client, server, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    done = client.post("/v1/tasks/colours/predict", content=b"green", headers=headers)
    assert done.status_code == 200, done.text
    (answer,) = schemas.Answers.model_validate_json(done.text).answers
    assert list(answer.classes) == ["green", "red", "blue"]
    assert server.engine.asked == [("colours", b"green", 5)]


def test_a_form_with_several_images_and_a_field(client, server):
    files = [("image", ("a.png", b"red\r\n--", "image/png")), ("image", ("b.png", b"blue"))]
    done = client.post("/v1/tasks/colours/predict", files=files, data={"top_k": "1"})
    assert [classes(answer) for answer in done.json()["answers"]] == [["red"], ["blue"]]
    assert server.engine.asked == [("colours", b"red\r\n--", 1), ("colours", b"blue", 1)]


def test_a_large_image_in_a_form_needs_no_disk(client, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")  # full, or read only, as in many containers
    done = client.post("/v1/tasks/colours/predict", files={"image": b"red" * 1_000_000})
    assert classes(done.json()["answers"][0])[0] == "red"


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
    (image,) = schemas.Inferences.model_validate_json(done.text).images
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
    found = schemas.TaskList.model_validate_json(client.get("/v1/tasks").text)
    assert [task.name for task in found.tasks] == ["colours", "signs"]
    assert found.backbone.source == "timm:none"
    assert found.refused == {"broken.safetensors": "damaged"}
    assert found.limits.tasks == 3
    one = schemas.TaskStatus.model_validate_json(client.get("/v1/tasks/signs").text)
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


def test_health(client):
    assert client.get("/health").json() == client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/livez").json() == {"status": "alive"}
    for path in ("/health", "/livez", "/readyz"):
        assert (client.head(path).status_code, client.head(path).content) == (200, b"")


def test_openapi_describes_every_route(client):
    document = client.get("/openapi.json").json()
    found = {(m, path) for path, operations in document["paths"].items() for m in operations}
    assert found >= {
        ("post", "/v1/tasks/{task}/predict"), ("post", "/v1/predict"), ("get", "/v1/tasks"),
        ("get", "/v1/tasks/{task}"), ("put", "/v1/tasks/{task}"), ("delete", "/v1/tasks/{task}"),
        ("get", "/health"), ("get", "/livez"),
    }  # fmt: skip
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    predict = document["paths"]["/v1/tasks/{task}/predict"]["post"]
    assert predict["security"] == [{"token": []}]
    content = predict["requestBody"]["content"]
    assert {"multipart/form-data", "application/json", "image/webp"} <= set(content)
    asked = {"image", "images", "text", "texts", "top_k"}
    assert set(content["application/json"]["schema"]["properties"]) == asked
    assert {p["name"] for p in predict["parameters"]} == {"task", "top_k"}
    schema = predict["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Answers"}
    answer = document["components"]["schemas"]["Answer"]["properties"]
    assert {"task", "classes", "confidence", "tier", "timing_ms"} <= set(answer)
    assert {"200", "4XX", "5XX"} <= set(predict["responses"])


def test_it_is_an_ordinary_fastapi_application():
    app = create_app(FakeEngine())
    app.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"])

    @app.get("/mine/{number}")
    async def mine(number: int) -> dict[str, int]:
        if not number:
            raise HTTPException(404)
        return {"number": number}

    with TestClient(app) as client:
        assert client.get("/mine/7").json() == {"number": 7}
        assert client.get("/mine/x").json()["error"]["code"] == "invalid"
        assert client.get("/mine/0").json()["error"]["message"] == "Not Found"  # the path is known
        assert "/mine/{number}" in client.get("/openapi.json").json()["paths"]
        done = client.get("/health", headers={"Origin": "https://shop.example"})
        assert done.headers["access-control-allow-origin"] == "https://shop.example"
        assert client.get("/mine/7").headers["x-request-id"]
        app.dependency_overrides[get_engine] = lambda: FakeEngine(["other"])
        names = [task["name"] for task in client.get("/v1/tasks").json()["tasks"]]
        assert names == ["other"]


def test_origins_that_may_ask():
    app = create_app(FakeEngine(), token="s3cret", cors_origins=["https://shop.example"])
    asks = {
        "Origin": "https://shop.example", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }  # fmt: skip
    with TestClient(app) as client:
        allowed = client.options("/v1/predict", headers=asks)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
        other = client.options("/v1/predict", headers=asks | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        refused = client.get("/v1/tasks", headers={"Origin": "https://shop.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://shop.example"


def test_an_engine_that_is_given_ready_is_left_open():
    engine = FakeEngine()
    with TestClient(create_app(engine)) as client:
        assert client.get("/health").status_code == 200
    assert engine.closed == []
    with TestClient(create_app(lambda: engine)) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
    assert engine.closed == [True]


@pytest.mark.parametrize("engine", [FakeEngine(), FakeEngine], ids=["ready", "function"])
def test_an_application_may_be_started_again(engine):
    app = create_app(engine)
    for _ in range(2):
        with TestClient(app) as client:
            wait_until(lambda: client.get("/health").status_code == 200)


def test_a_mounted_application_whose_lifespan_nobody_runs_says_so():
    outer = FastAPI()
    outer.mount("/tasks", create_app(FakeEngine))
    with TestClient(outer) as client:
        assert "lifespan" in client.get("/tasks/health").json()["reason"]
    outer.mount("/ready", create_app(FakeEngine()))
    with TestClient(outer) as client:
        assert client.get("/ready/v1/tasks").status_code == 200


@pytest.mark.parametrize("origin", ["shop.example", "https://shop.example/", "", 1, "https://a b"])
def test_an_origin_that_no_browser_sends_is_refused(origin):
    with pytest.raises(InputError, match="cors_origins"):
        create_app(FakeEngine(), cors_origins=[origin])


def test_what_fails_in_a_route_of_ones_own_is_not_blamed_on_the_client(caplog):
    class Row(BaseModel):
        name: str

    app = create_app(FakeEngine(), limits=Limits(body_bytes=1000), cors_origins=["*"])

    @app.get("/row")
    async def row() -> Row:
        return Row.model_validate({"name": 7})

    @app.get("/busy")
    async def busy() -> None:
        raise HTTPException(503, {"why": "busy"})

    @app.post("/up")
    async def up(file: UploadFile) -> int:
        return len(await file.read())

    with TestClient(app, raise_server_exceptions=False) as client:
        failed = client.get("/row", headers={"Origin": "https://shop.example"})
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal")
        assert "ValidationError" in caplog.text
        assert failed.headers["access-control-allow-origin"] == "*"
        assert client.get("/busy").json()["error"] == {
            "code": "unavailable", "message": '{"why": "busy"}'
        }  # fmt: skip
        assert client.post("/up", files={"file": b"x" * 2000}).status_code == 413


@pytest.fixture
def environ(monkeypatch):
    """Sets variables, beside the two that are needed."""

    def set_all(**variables):
        needed = {"TASKS": "tasks", "BACKBONE": "resnet18"}
        for name, text in (needed | variables).items():
            monkeypatch.setenv(f"PIGGYBACK_{name}", text)

    return set_all


def test_a_factory_for_other_servers(monkeypatch, environ, tmp_path):
    made = []
    monkeypatch.setattr(
        "piggyback.serve.engine.Engine", lambda *given: made.append(given) or FakeEngine()
    )
    environ()
    assert app_from_env().state.service.local_only
    environ(LOCAL_ONLY="0")
    assert not app_from_env().state.service.local_only
    (tmp_path / "token").write_text("s3cret")
    environ(
        MEMORY="1GiB",
        TOKEN_FILE=str(tmp_path / "token"),
        ENGINE_MAX_BATCH="8",
        ENGINE_DECODE_APART="true",
        LIMITS_TIMEOUT_S="2.5",
        CORS_ORIGINS="https://a.example, https://b.example",
    )
    app = app_from_env()
    with TestClient(app) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        assert client.get("/v1/tasks").status_code == 401
        done = client.get("/health", headers={"Origin": "https://b.example"})
        assert done.headers["access-control-allow-origin"] == "https://b.example"
    assert made == [("resnet18", "tasks", 2**30, EngineOptions(max_batch=8, decode_apart=True))]
    assert app.state.service.limits == Limits(timeout_s=2.5)
    assert app.state.service.token == "s3cret"


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("TASKS", "", "PIGGYBACK_TASKS"),
        ("BACKBONE", "", "PIGGYBACK_BACKBONE"),
        ("ENGINE_MAX_BATCHES", "8", "PIGGYBACK_ENGINE_MAX_BATCHES.*'max_batch'"),
        ("ENGINE_MAX_BATCH", "many", "PIGGYBACK_ENGINE_MAX_BATCH"),
        ("LIMITS_IMAGES", "0", "PIGGYBACK_LIMITS_.*images"),
        ("TOKEN", "two words", "PIGGYBACK_TOKEN"),
        ("MEMORY", "lots", "PIGGYBACK_MEMORY"),
        ("LOCAL_ONLY", "false", "PIGGYBACK_LOCAL_ONLY 'false'"),
    ],
)
def test_a_wrong_variable_is_named_in_one_line(environ, name, text, named, capsys):
    environ(**{name: text})
    with pytest.raises(SystemExit) as ended:
        app_from_env()
    assert ended.value.code == 4  # at which gunicorn does not start another worker
    assert re.fullmatch(f"error: .*{named}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_a_missing_package_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"\.\[serve\]"):
        importlib.reload(piggyback.serve.http)
