"""What a server answered wrongly, or never, without a word."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from piggyback.errors import OtherClassesError
from piggyback.serve import Engine, EngineOptions
from piggyback.taskfile.file import load_file, save
from support.fake_engine import FakeEngine, served
from support.telling import Telling, write_tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tasks(tmp_path / "tasks", 2)
    return tmp_path / "tasks"


def over(folder: Path) -> Engine:
    return Engine(Telling(), folder, "64MiB", EngineOptions(watch_s=0.0, device="cpu"))


def other_classes(folder: Path, kind: str) -> bytes:
    task = load_file(folder / "t1.safetensors")
    classes = {"order": task.info.classes[::-1], "names": (*task.info.classes[:-1], "new")}[kind]
    return save(replace(task, info=replace(task.info, classes=classes)))


@pytest.mark.parametrize("kind", ["order", "names"])
def test_an_upload_changes_no_classes_unless_asked(folder, kind):
    data = other_classes(folder, kind)
    with over(folder) as engine:
        before = engine.task("t1")
        with pytest.raises(OtherClassesError, match="t1"):
            engine.put_task("t1", data)
        assert engine.task("t1") == before
        assert engine.put_task("t1", data, replace_classes=True).classes != before.classes
        engine.put_task("t9", data)  # a name that was free
        assert engine.put_task("t1", data).classes == engine.task("t9").classes


FORKED = """
import os, sys
from piggyback.errors import TaskStateError
from piggyback.serve import Engine, EngineOptions
from support.fake_engine import FakeEngine, served
from support.telling import INPUT, Telling

folder, ask = sys.argv[1:]
engine = Engine(Telling(), folder, "64MiB", EngineOptions(watch_s=0.0, device="cpu"))
child = os.fork()
if not child:
    try:
        getattr(engine, ask)(INPUT, *(() if ask == "infer" else ("t1",)))
    except TaskStateError as error:
        os._exit(7 if "fork" in str(error) else 8)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert engine.predict(INPUT, "t1").task == "t1"
os._exit(0)
"""


@pytest.mark.parametrize("ask", ["predict", "infer", "submit"])
def test_an_engine_of_another_process_does_not_hang(folder, ask):
    # In a process of its own: what a fork does to this one's threads is not for the other tests to find out.
    here = Path(__file__).parents[2]
    paths = os.pathsep.join([str(here), str(here / "tests"), *filter(None, sys.path)])
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(folder), ask],
        env={**os.environ, "PYTHONPATH": paths},
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def server():
    with served(FakeEngine()) as running:
        yield running


PREDICT = "/v1/tasks/colours/predict"
BYTES = b"red \xfb\xff\xfe pixels, enough of them for a second line of base64, and for both of its alphabets"
PLAIN = base64.b64encode(BYTES).decode()


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.rstrip("="),
        base64.urlsafe_b64encode(BYTES).decode(),
        base64.encodebytes(BYTES).decode(),
        base64.encodebytes(BYTES).decode().replace("\n", "\r\n"),
        f"data:image/png;base64,{PLAIN}",
        f"DATA:image/jpeg;charset=utf-8;BASE64, {PLAIN}\n",
        f"data:;base64,{PLAIN}",
    ],
)
def test_base64_as_programs_write_it(server, text):
    server.service.started.asked.clear()
    for body in ({"image": text}, {"images": [text] * 32}):
        done = httpx.post(server.address + PREDICT, json=body)
        assert done.status_code == 200, done.text
    assert {image for _, image, _ in server.service.started.asked} == {BYTES}


@pytest.mark.parametrize("text", ["data:image/png,red", "data:" + ";" * 10**6, "cm-+!", "c"])
def test_base64_that_is_none(server, text):
    done = httpx.post(server.address + PREDICT, json={"image": text})
    assert (done.status_code, done.json()["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    "kind",
    ["image/jpg", "IMAGE/JPEG; q=1", "image/pjpeg", "image/x-png", "application/octet-stream", "", None],
)  # fmt: skip
def test_an_image_by_another_name_of_its_type(server, kind):
    request = httpx.Request("POST", server.address + PREDICT, content=b"red")
    if kind is not None:
        request.headers["Content-Type"] = kind
    with httpx.Client() as client:
        done = client.send(request)
    assert done.status_code == 200, done.text
