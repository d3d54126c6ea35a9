"""What a server answered wrongly, or never, without a word."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import math
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import httpx2
import pytest
from torch import nn

from piggyback.client import Client
from piggyback.errors import (
    DataError,
    InputError,
    OtherClassesError,
    OverloadError,
    PiggybackError,
    TaskStateError,
    UnavailableError,
    UnknownTaskError,
)
from piggyback.model.multitask import MultiTaskModel
from piggyback.schemas import RankedClass
from piggyback.serve import Engine, EngineOptions
from piggyback.serve.http.app import create_app
from piggyback.serve.http.limits import Limits
from piggyback.serve.http.logs import logging_to
from piggyback.serve.stats import MOST_CLASSES, OTHERS, Counts
from piggyback.taskfile.file import load_file, save
from support.colour_tasks import COLOURS, Colours, picture, task_file
from support.fake_engine import FakeEngine, connected, received, served
from support.fake_server import FakeServer, refusal, serving
from support.random_requests import request
from support.telling import INPUT, Telling, engine_over, write_tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tasks(tmp_path / "tasks", 2)
    return tmp_path / "tasks"


def other_classes(folder: Path, kind: str) -> bytes:
    task = load_file(folder / "t1.safetensors")
    changes = {
        "order": {"classes": task.info.classes[::-1]},
        "names": {"classes": (*task.info.classes[:-1], "new")},
        "kind": {"kind": "multilabel"},
        "units": {"kind": "regression", "units": ("m",) * len(task.info.classes)},
    }
    if kind == "units":
        task = replace(task, info=replace(task.info, kind="regression"))
        (folder / "t1.safetensors").write_bytes(save(task))
    return save(replace(task, info=replace(task.info, **changes[kind])))


@pytest.mark.parametrize("kind", ["order", "names", "kind", "units"])
def test_an_upload_changes_no_classes_unless_asked(folder, kind):
    data = other_classes(folder, kind)
    with engine_over(folder) as engine:
        before = engine.task("t1")
        with pytest.raises(OtherClassesError, match="t1"):
            engine.put_task("t1", data)
        assert engine.task("t1") == before
        assert engine.put_task("t1", data, replace_classes=True).version != before.version
        engine.put_task("t9", data)  # a name that was free
        assert engine.put_task("t1", data).version == engine.task("t9").version


FORKED = """
import os, sys
from piggyback.errors import TaskStateError
from support.telling import INPUT, engine_over

folder, ask = sys.argv[1:]
engine = engine_over(folder)
child = os.fork()
if not child:
    try:
        assert engine.closed
        getattr(engine, ask)(INPUT, *(() if ask == "infer" else ("t1",)))
    except TaskStateError as error:
        os._exit(7 if "fork" in str(error) else 8)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert engine.predict(INPUT, "t1").task == "t1"
assert not engine.closed
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


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda engine: engine.predict(INPUT, None), "task"),
        (lambda engine: engine.put_task("a", "a.safetensors"), "data"),
        (lambda engine: engine.put_task("a", b"", replace_classes="no"), "replace_classes"),
        (lambda engine: engine.task(None), "task"),
        (lambda engine: engine.delete_task([]), "task"),
        (lambda engine: Engine(nn.Identity(), ""), "tasks_dir ''"),
        (lambda engine: EngineOptions(patience_ms="20"), "patience_ms '20'"),
        (lambda engine: EngineOptions(compile="no"), "compile 'no'"),
        (lambda engine: Limits(images="4"), "limit images '4'"),
        (lambda engine: Limits(stop_s=math.inf), "limit stop_s inf"),
        (lambda engine: create_app(None), "engine None"),
        (lambda engine: create_app(engine, limits={}), "limits"),
        (lambda engine: create_app(engine, cors_origins="https://a.example"), "cors_origins"),
        (lambda engine: engine.infer(INPUT, "t1"), "tasks 't1'"),
        (lambda engine: engine.infer(INPUT, []), "tasks"),
        (lambda engine: engine.predict(INPUT, "t1", timeout="1"), "timeout '1'"),
        (lambda engine: engine.predict(INPUT, "t1", timeout=math.nan), "timeout nan"),
        (lambda engine: asyncio.run(engine.predict_async(INPUT, "t1", timeout=1e300)), "timeout"),
        (lambda engine: engine.close(timeout="1"), "timeout '1'"),
        (lambda engine: pickle.dumps(engine), "an Engine"),
        (lambda engine: Engine(5, "tasks"), "backbone"),
        (lambda engine: Engine(nn.Identity(), None), "tasks_dir"),
        (lambda engine: Engine(nn.Identity(), "tasks", options={}), "options"),
    ],
)
def test_what_an_engine_is_given_is_named_in_one_line(folder, call, named):
    with engine_over(folder) as engine, pytest.raises(PiggybackError, match=f"^{named}") as error:
        call(engine)
    assert "\n" not in str(error.value)


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
    server.engine.asked.clear()
    for body in ({"image": text}, {"images": [text] * 32}):
        done = httpx.post(server.address + PREDICT, json=body)
        assert done.status_code == 200, done.text
        marked = b"\xef\xbb\xbf" + json.dumps(body).encode()  # as some editors begin a file
        headers = {"Content-Type": "application/json"}
        done = httpx.post(server.address + PREDICT, content=marked, headers=headers)
        assert done.status_code == 200, done.text
    assert {image for _, image, _ in server.engine.asked} == {BYTES}


@pytest.mark.parametrize("text", ["data:image/png,red", "data:" + ";" * 10**6, "cm-+!", "c"])
def test_base64_that_is_none(server, text):
    done = httpx.post(server.address + PREDICT, json={"image": text})
    assert (done.status_code, done.json()["error"]["code"]) == (400, "bad_request")


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@contextmanager
def logged(level: str = "info"):
    stream = io.StringIO()
    with logging_to(stream, level):
        yield stream


def test_the_log_tells_of_each_file(folder):
    damaged = folder / "t2.safetensors"
    with logged() as stream, engine_over(folder) as engine:
        whole = (folder / "t1.safetensors").read_bytes()
        engine.put_task("t9", whole)
        engine.put_task("t9", whole)  # nothing changes
        engine.put_task("t9", (folder / "t0.safetensors").read_bytes(), replace_classes=True)
        damaged.write_bytes(b"damaged")
        for _ in range(3):
            engine.rescan()
        engine.delete_task("t9")
        (folder / "t0.safetensors").unlink()
        engine.rescan()
        found = engine.stats().files
    told = [(line["event"], line.get("task") or line["file"]) for line in lines(stream)]
    assert told == [
        ("task added", "t0"), ("task added", "t1"), ("task added", "t9"), ("task replaced", "t9"),
        ("task refused", "t2.safetensors"), ("task removed", "t9"), ("task removed", "t0"),
    ]  # fmt: skip
    replaced, refused = lines(stream)[3:5]
    assert replaced["before"] != replaced["version"]
    assert replaced["classes"]
    assert "cut off" in refused["reason"]
    assert found == {"added": 3, "replaced": 1, "removed": 2, "refused": 1}


def test_an_engine_does_not_start_on_a_folder_that_is_not_there(tmp_path):
    # In place of one that is ready and knows no task, for a name that was mistyped or is not mounted yet.
    for place in ("taks", "t1.safetensors"):
        (tmp_path / "t1.safetensors").touch()
        with pytest.raises(UnavailableError, match=place):
            Engine("no_such_backbone", tmp_path / place)  # before anything is loaded


def test_an_engine_takes_no_network_with_a_tasks_masks_in_its_weights(folder):
    model = MultiTaskModel(Telling())
    model.load_task(folder / "t1.safetensors")
    network = model.backbone
    with pytest.raises(TaskStateError, match="release"):
        Engine(network, folder)
    model.release()
    with Engine(network, folder, options=EngineOptions(watch_s=0, device="cpu")) as engine:
        assert engine.predict(INPUT, "t1").task == "t1"


def test_where_the_folder_cannot_be_listed_no_task_is_called_unknown(folder):
    away = folder.with_name("away")
    (away).mkdir()
    with engine_over(away) as engine:
        away.rmdir()
        engine.rescan()
        with pytest.raises(UnavailableError, match="'t1'"):
            engine.predict(INPUT, "t1")
        folder.rename(away)
        engine.rescan()
        assert engine.predict(INPUT, "t1").task == "t1"
        with pytest.raises(UnknownTaskError):
            engine.predict(INPUT, "t9")


def test_a_folder_that_goes_away_is_said_once_and_so_is_its_return(folder):
    away = folder.with_name("away")
    with engine_over(folder) as engine, logged() as stream:
        engine.predict(INPUT, "t1")
        folder.rename(away)
        for _ in range(3):
            engine.rescan()
        assert engine.problem
        assert engine.predict(INPUT, "t1").task == "t1"
        with pytest.raises(UnavailableError):
            engine.predict(INPUT, "t0")
        away.rename(folder)
        engine.rescan()
        assert engine.problem is None
        assert engine.predict(INPUT, "t0").task == "t0"
    assert [line["event"] for line in lines(stream)] == [
        "tasks unreachable",
        "tasks reachable again",
    ]


def test_polls_are_debug_lines_and_refusals_have_their_code():
    paths = ["/", "/health", "/livez", "/readyz", "/metrics", "/v1/tasks", "/page/page.js", "/docs"]
    with logged() as stream, served(FakeEngine()) as running:
        for path in paths:
            assert httpx.get(running.address + path).status_code == 200
        httpx.get(running.address + "/page/none.js")
        httpx.get(running.address + "/v1/tasks/none")
        httpx.put(running.address + "/v1/tasks/colours", content=b"")
        httpx.post(running.address + PREDICT, content=b"no image")
        httpx.patch(running.address + PREDICT)
        httpx.post(running.address + PREDICT, content=b"red")
    told = lines(stream)
    assert [line["event"] for line in told if "event" in line] == [
        "starting",
        "ready",
        "stopping",
        "stopped",
    ]
    asked = [(line["path"], line.get("code")) for line in told if "path" in line]
    assert asked == [
        ("/page/none.js", "not_found"), ("/v1/tasks/none", "unknown_task"), ("/v1/tasks/colours", "forbidden"),
        (PREDICT, "bad_image"), (PREDICT, "method_not_allowed"), (PREDICT, None),
    ]  # fmt: skip
    with logged("debug") as stream, served(FakeEngine()) as running:
        for path in paths:
            httpx.get(running.address + path)
    assert [line["path"] for line in lines(stream) if "path" in line] == paths


def test_a_callback_that_asks_the_engine_does_not_hang_it(folder):
    found = []

    def ask(done):
        with pytest.raises(TaskStateError, match="callback"):
            engine.predict(INPUT, "t1")
        found.append(engine.submit(INPUT, "t1"))

    with engine_over(folder, workers=1) as engine:
        engine.submit(INPUT, "t1").add_done_callback(ask)
        until = time.monotonic() + 60
        while not found and time.monotonic() < until:
            time.sleep(0.01)
        assert found[0].result(60).task == "t1"


def test_answers_are_counted_by_class(folder):
    with engine_over(folder) as engine:
        for _ in range(3):
            engine.predict(INPUT, "t1")
        found = engine.stats()
        best = engine.predict(INPUT, "t1").classes[0]
        assert found.answers == {("t1", best): 3}
        assert found.chances["t1"].counts[-1] == 3
        assert (found + found).answers == {("t1", best): 6}
        engine.delete_task("t1")
        assert not engine.stats().answers
        assert not engine.stats().chances


def test_classes_that_are_counted_are_bounded():
    counts = Counts()
    for at in range(MOST_CLASSES + 50):
        counts.answered("t", [RankedClass(name=f"class {at}", probability=0.5)])
    answers = counts.snapshot()["answers"]
    assert len(answers) == MOST_CLASSES + 1
    assert answers["t", OTHERS] == 50


def test_another_server_says_that_a_port_is_taken_before_the_network_is_loaded(folder):
    factory = ["-m", "uvicorn", "--factory", "piggyback.serve.http:app_from_env", "--port"]
    variables = {"PIGGYBACK_TASKS": str(folder), "PIGGYBACK_BACKBONE": "timm:resnet50"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = subprocess.run(
            [sys.executable, *factory, str(taken.getsockname()[1])],
            env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=90,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode
    assert "in use" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "loading" not in ran.stderr


def files_of(*images: bytes) -> list:
    return [("image", (f"{at}.jpg", image)) for at, image in enumerate(images)]


@pytest.mark.parametrize("path", [PREDICT, "/v1/predict"])
def test_one_bad_image_does_not_keep_the_others_from_being_answered(server, path):
    done = httpx.post(server.address + path, files=files_of(b"red", b"none", b"", b"blue"))
    assert done.status_code == 200
    body = done.json()
    said = body.get("answers", body.get("images"))
    assert [one and one["file"] for one in said] == ["0.jpg", None, None, "3.jpg"]
    assert [(e["index"], e["file"], e["code"]) for e in body["errors"]] == [
        (1, "1.jpg", "bad_image"), (2, "2.jpg", "bad_image"),
    ]  # fmt: skip
    texts = [base64.b64encode(data).decode() for data in (b"red", b"none")]
    by_index = httpx.post(server.address + path, json={"images": texts}).json()
    assert [one["index"] for one in by_index["errors"]] == [1]
    whole = httpx.post(server.address + path, files=files_of(b"red")).json()
    assert "errors" not in whole
    plain = httpx.post(server.address + PREDICT, content=b"red").json()
    assert plain.keys() == {"answers"}
    assert "file" not in plain["answers"][0]


@pytest.mark.parametrize("path", [PREDICT, "/v1/predict"])
@pytest.mark.parametrize("images", [(b"none", b"", b"nor this"), (b"", b"")])
def test_images_that_are_all_bad_are_an_error_that_names_each(server, path, images):
    done = httpx.post(server.address + path, files=files_of(*images))
    assert (done.status_code, done.json()["error"]["code"]) == (400, "bad_image")
    assert "'0.jpg'" in done.json()["error"]["message"]
    assert [one["file"] for one in done.json()["errors"]] == [
        f"{i}.jpg" for i in range(len(images))
    ]


def test_an_engine_gives_the_error_in_the_answers_place_and_counts_it(tmp_path):
    (tmp_path / "plain.safetensors").write_bytes(task_file("plain"))
    with Engine(Colours(), tmp_path, "64MiB", EngineOptions(watch_s=0.0, device="cpu")) as engine:
        images = [picture("red"), b"no image", picture("lime")]
        good, bad, last = engine.predict(images, "plain", return_errors=True)
        assert (good.classes[0], last.classes[0]) == ("plain red", "plain lime")
        assert isinstance(bad, DataError)
        for ask, task in ((engine.predict, "plain"), (engine.infer, ["plain"])):
            with pytest.raises(DataError):
                ask(b"no image", task)
        assert engine.stats().requests == {("plain", "ok"): 2, ("plain", "error"): 3}
        assert all(
            isinstance(e, DataError) for e in engine.predict([b"", b"x"], "plain", 1, None, True)
        )
        with pytest.raises(DataError):
            engine.predict(images, "plain")
        with pytest.raises(DataError):
            engine.predict(b"no image", "plain", return_errors=True)
        assert engine.queue_depth == 0


def test_a_client_gives_the_error_in_the_answers_place(server, tmp_path):
    good, cut, gone = (tmp_path / name for name in ("good.png", "cut.png", "gone.png"))
    good.write_bytes(b"\x89PNG\r\n\x1a\n")
    cut.write_bytes(b"red")
    files = [good, cut, gone, *[b"BM not one"] * 20]
    with Client(server.address) as client:
        with pytest.raises(DataError, match=r"cut\.png"):
            client.predict(files, "colours")
        for task in ("colours", None):
            found = client.predict(files, task, return_errors=True)
            assert len(found) == 23
            assert all(isinstance(one, DataError) for one in found)
            assert "cut.png" in str(found[1])
            assert "gone.png" in str(found[2])
        with pytest.raises(DataError):
            client.predict(b"BM not one", "colours", return_errors=True)


def test_a_threshold_for_the_choice_of_a_task_is_not_passed_over_where_one_is_named(server):
    with Client(server.address) as client, pytest.raises(InputError, match=r"^at_least"):
        client.predict(BYTES, "colours", at_least=0.9)


def test_a_form_of_another_fields_name_is_told_the_right_one(server):
    done = httpx.post(server.address + PREDICT, files={"file": BYTES})
    assert done.status_code == 422
    assert "'image'" in done.json()["error"]["message"]


def test_none_of_these_where_no_task_is_sure(server):
    asked = {"files": {"image": b"red"}}
    for query, task in (("", "colours"), ("?at_least=0.51", None), ("?at_least=0.5", "colours")):
        (one,) = httpx.post(f"{server.address}/v1/predict{query}", **asked).json()["images"]
        assert one["task"] == task
        assert len(one["answers"]) == 2
    form = httpx.post(server.address + "/v1/predict", data={"at_least": "0.9"}, **asked)
    assert form.json()["images"][0]["task"] is None
    for bad in ("nan", "-1", "2", "x", "inf"):
        done = httpx.post(f"{server.address}/v1/predict?at_least={bad}", **asked)
        assert (done.status_code, done.json()["error"]["code"]) == (422, "invalid")
    assert httpx.post(f"{server.address}{PREDICT}?at_least=0.5", **asked).status_code == 422


def test_random_requests_are_answered_or_refused(tmp_path):
    """PIGGYBACK_FUZZ=10000 sends as many; each has five seconds."""
    count = int(os.environ.get("PIGGYBACK_FUZZ", "300"))
    for name, shift in (("plain", 0), ("next", 1)):
        (tmp_path / f"{name}.safetensors").write_bytes(task_file(name, shift))
    options = EngineOptions(watch_s=0.0, device="cpu", max_pixels=10_000, precision="float32")
    seen: Counter[int] = Counter()
    limits = Limits(body_s=1.0)
    with (
        logged() as stream,
        served(lambda: Engine(Colours(), tmp_path, "64MiB", options), limits=limits) as server,
    ):
        rng = random.Random(0)
        for number in range(count):
            asked, whole = request(rng)
            with connected(server) as line:
                line.settimeout(5)
                with contextlib.suppress(
                    ConnectionError
                ):  # it was refused before all of it was sent
                    line.sendall(asked)
                    if not whole:
                        line.shutdown(socket.SHUT_WR)
                try:
                    answer = received(line)
                except ConnectionError:
                    answer = b""
                except TimeoutError:
                    pytest.fail(f"request {number} hangs: {asked[:300]!r}")
            status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
            seen[status] += 1
            assert status < 500, f"request {number}: {asked[:300]!r}\n{answer[:500]!r}"
            assert b"Traceback" not in answer
        with Client(server.address) as client:
            for name, shift in (("plain", 0), ("next", 1)):
                for at, colour in enumerate(COLOURS):
                    right = f"{name} {COLOURS[(at + shift) % 3]}"
                    assert client.predict(picture(colour), name).classes[0] == right
        assert server.service.held == 0
        assert server.engine.queue_depth == 0
    assert '"trace"' not in stream.getvalue()
    assert seen[200] > count / 20, seen
    sys.stdout.write(f"{sorted(seen.items())}\n")


def test_two_uploads_at_once_leave_none_behind_and_change_no_classes(folder):
    first, other = ((folder / f"t{at}.safetensors").read_bytes() for at in range(2))
    with engine_over(folder) as engine:
        put, started = engine._folder.put, threading.Barrier(2)

        def meet(name, data, decode, replace_classes):
            return put(name, data, lambda *_: started.wait(60), replace_classes)

        engine._folder.put = meet
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(engine.put_task, "new", data) for data in (first, other)]
            errors = [job.exception() for job in jobs]
        assert [type(error) for error in errors if error] == [OtherClassesError]
        (kept,) = [job.result() for job, error in zip(jobs, errors, strict=True) if not error]
        assert engine.task("new") == kept


@pytest.mark.parametrize(
    ("after", "tries"),
    [
        ("0", 2), ("Wed, 21 Oct 2015 07:28:00 GMT", 2), ("-5", 1), ("1e3", 1), ("nan", 1), ("9" * 400, 1), ("soon", 1),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 1), ("Fri, 99 Dec 99999", 1), ("", 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("timeout", [30.0, None])
def test_when_a_busy_server_is_asked_again(after, tries, timeout):
    fake = FakeServer(lambda asked: refusal(503, "overload", "busy", Retry_After=after))
    with (
        serving(fake),
        Client(fake.url, retries=1, timeout=httpx2.Timeout(timeout)) as client,
        pytest.raises(OverloadError),
    ):
        client.predict(b"BM and so on", "signs")
    assert len(fake.asked) == tries
    assert len({asked.body for asked in fake.asked}) == 1


def test_file_names_of_other_encodings_and_kinds_that_are_not_served(folder):
    odd = os.fsencode(folder) + b"/\xff\x1b[31m.safetensors"
    Path(os.fsdecode(odd)).write_bytes(b"")
    task = load_file(folder / "t1.safetensors")
    strange = replace(task, info=replace(task.info, kind="strange\x1b[31m"))
    (folder / "strange.safetensors").write_bytes(save(strange))
    with logged() as stream, served(lambda: engine_over(folder)) as server:
        listed = httpx.get(server.address + "/v1/tasks").json()["refused"]
        asked = httpx.post(f"{server.address}/v1/tasks/strange/predict", content=b"x")
        with Client(server.address) as client:
            assert [status.name for status in client.tasks()] == ["t0", "t1"]
    assert len(listed) == 2
    assert asked.status_code == 404
    assert "strange" in asked.json()["error"]["message"]
    for text in (stream.getvalue(), *listed, *listed.values(), asked.json()["error"]["message"]):
        assert text.isascii()
        assert "\x1b" not in text
