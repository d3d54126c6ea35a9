"""What clients send, and what comes back."""

from __future__ import annotations

import asyncio
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
import torch
from PIL import Image

from piggyback.client import AsyncClient, Client, Text
from piggyback.client.exchange import IMAGES_A_REQUEST
from piggyback.errors import (
    ClosedError,
    DataError,
    InputError,
    TaskFileError,
    TaskNameError,
    UnknownTaskError,
)
from piggyback.taskfile.file import save, save_file
from piggyback.taskfile.task import Task
from support.fake_server import STATUS, FakeServer, answer


def test_an_image_goes_out_as_it_is_and_its_answer_comes_back(
    server: FakeServer, client: Client
) -> None:
    assert client.predict(b"BM one", "signs", top_k=3) == answer("signs", "BM one")
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/v1/tasks/signs/predict?top_k=3")
    assert (asked.body, asked.headers["content-type"]) == (b"BM one", "image/bmp")
    assert asked.headers["serve-multiplexed-model-id"] == "signs"  # for a cluster's router
    assert "authorization" not in asked.headers


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp", "gif"])
def test_a_files_bytes_are_sent_with_their_media_type(
    server: FakeServer, client: Client, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "picture.dat"
    Image.new("RGB", (7, 5), "green").save(path, kind)
    for given in (path, str(path), path.read_bytes(), bytearray(path.read_bytes())):
        client.predict(given, "signs")
        assert server.asked[-1].body == path.read_bytes()
        assert server.asked[-1].headers["content-type"] == f"image/{kind}"


def test_a_batch_gives_a_list(client: Client, server: FakeServer) -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    for batch in (pixels, pixels.permute(0, 2, 3, 1).numpy(), list(pixels), tuple(pixels)):
        assert len(client.predict(batch, "signs")) == 2
    assert len(client.predict([pixels[0]], "signs")) == 1
    assert len(server.asked) == 5


def test_many_images_are_answered_in_order_in_requests_of_bounded_size(
    client: Client, server: FakeServer
) -> None:
    images = [b"BM %d" % number for number in range(2 * IMAGES_A_REQUEST + 1)]
    found = client.predict(images, "signs")
    assert [one.classes[0].encode() for one in found] == images
    assert len(server.asked) == 3
    server.asked.clear()
    large = [b"BM" + bytes([number]) * 3_000_000 for number in range(5)]
    assert [one.classes[0][2] for one in client.predict(large, "signs")] == list(map(chr, range(5)))
    assert max(len(asked.body) for asked in server.asked) < 9_000_000


def test_without_a_task_the_surest_answers(client: Client, server: FakeServer) -> None:
    assert client.predict(b"BM x") == answer("signs", "BM x")
    assert [one.task for one in client.predict([b"BM x", b"BM y"])] == ["signs"] * 2
    assert server.asked[0].path == "/v1/predict?top_k=5"


def test_infer_gives_every_tasks_answer(client: Client, server: FakeServer) -> None:
    found = client.infer(b"BM x", ["signs", "letters"], top_k=2)
    assert found == [answer("signs", "BM x"), answer("letters", "BM x")]
    query = parse_qs(urlsplit(server.asked[0].path).query)
    assert query == {"task": ["signs", "letters"], "top_k": ["2"]}
    client.infer(b"BM x")
    assert server.asked[1].path == "/v1/predict?top_k=5"


def test_tasks_are_listed_added_and_removed(
    client: Client, server: FakeServer, tmp_path: Path
) -> None:
    assert client.tasks() == [STATUS]
    assert client.task("signs") == STATUS
    task = Task("signs", {}, {"weight": torch.zeros(2, 3)})
    save_file(task, tmp_path / "file.safetensors")
    for given in (save(task), tmp_path / "file.safetensors", str(tmp_path / "file.safetensors")):
        assert client.put_task("signs", given) == STATUS
        assert (server.asked[-1].method, server.asked[-1].body) == ("PUT", save(task))
    client.delete_task("signs")
    assert (server.asked[-1].method, server.asked[-1].path) == ("DELETE", "/v1/tasks/signs")


def test_the_token_is_sent_and_never_shown(make: Any, server: FakeServer) -> None:
    with make(server.url, token="s3cret") as client:
        client.tasks()
        assert "s3cret" not in repr(client)
    assert server.asked[0].headers["authorization"] == "Bearer s3cret"
    for token in ("", "two words", "line\nbreak", "naïve"):
        with pytest.raises(InputError, match="printable ASCII") as told:
            make(server.url, token=token)
        assert not token or token not in str(told.value)


def test_a_base_path_goes_in_front(make: Any, server: FakeServer) -> None:
    with make(f"{server.url}/some/place/") as client:
        client.ready()
    assert server.asked[0].path == "/some/place/health"


def test_options_of_httpx_are_passed_on(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[httpx2.Request] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json={"status": "ready"})

    timeout = httpx2.Timeout(3, connect=1)
    transport = httpx2.MockTransport(handle)
    with Client("http://a.example", headers={"X": "y"}, timeout=timeout, transport=transport) as c:
        assert c.ready()
    assert seen[0].headers["x"] == "y"
    assert seen[0].extensions["timeout"] == {"connect": 1, "read": 3, "write": 3, "pool": 3}
    # A proxy is used if it is named, one of the environment only where that is asked for.
    for options in ({"proxy": server.url}, {"trust_env": True}, {}):
        monkeypatch.setenv("http_proxy", server.url)
        with Client("http://no.such.host.invalid", **options) as client:
            client.ready()
    assert [asked.path for asked in server.asked] == ["http://no.such.host.invalid/health"] * 2


def test_one_connection_serves_request_after_request(client: Client, server: FakeServer) -> None:
    for _ in range(10):
        client.predict(b"BM x", "signs")
        client.tasks()
    assert {asked.connection for asked in server.asked} == {0}


def test_threads_get_their_own_answers(server: FakeServer) -> None:
    images = [b"BM %d" % number for number in range(200)]
    with Client(server.url) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: client.predict(image, "signs"), images))
    assert [one.classes[0].encode() for one in found] == images
    assert len({asked.connection for asked in server.asked}) <= 8


def test_a_forked_process_does_not_use_its_parents_connections(
    client: Client, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.tasks()
    monkeypatch.setattr("os.getpid", lambda: -1)
    client.tasks()
    client.tasks()
    assert [asked.connection for asked in server.asked] == [0, 1, 1]


@pytest.mark.parametrize("again", [copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_and_a_pickled_client_have_connections_of_their_own(
    server: FakeServer, again: Any
) -> None:
    client = Client(server.url, token="s3cret")
    client.tasks()
    other = again(client)
    other.tasks()
    client.close()
    assert other.tasks()
    assert [asked.connection for asked in server.asked] == [0, 1, 1]
    assert server.asked[1].headers["authorization"] == "Bearer s3cret"


def test_an_asynchronous_client_works_in_one_event_loop_after_another(server: FakeServer) -> None:
    client = AsyncClient(server.url)
    for _ in range(2):
        assert asyncio.run(client.tasks())
    asyncio.run(client.close())
    with pytest.raises(ClosedError):
        asyncio.run(client.tasks())


def test_wrong_arguments_are_not_sent(
    client: Client, make: Any, server: FakeServer, tmp_path: Path
) -> None:
    for call, words in (
        (lambda: client.predict(b"BM", "signs", top_k=0), "top_k 0"),
        (lambda: client.predict([], "signs"), "no images"),
        (lambda: client.infer(b"BM", "signs"), "expected a list of names"),
        (lambda: client.infer(b"BM", []), "expected a list of names"),
        (lambda: client.infer(b"BM", 3), "expected a list of names"),
        (lambda: client.predict(b"BM", "signs", top_k=True), "top_k True"),
        (lambda: client.put_task("signs", b"", replace_classes="no"), "replace_classes 'no'"),
        (lambda: client.wait("x"), "timeout 'x'"),
        (lambda: client.wait(float("nan")), "timeout nan"),
        (lambda: client.wait(-1), "timeout -1"),
        (lambda: make(server.url, timeout=0), "timeout 0"),
        (lambda: make(server.url, timeout=1e10), "timeout 10000000000.0"),
        (lambda: make(server.url, retries=-1), "retries -1"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    with pytest.raises(DataError, match="Text"):  # which is no path, but looks like one
        client.predict("a great film", "signs")
    with pytest.raises(TaskFileError, match="cannot be read"):
        client.put_task("signs", tmp_path / "missing.safetensors")
    assert server.asked == []


def test_names_that_could_be_paths_are_not_sent(client: Client, server: FakeServer) -> None:
    for name in ("../signs", "..", "a/b", "", "a?b", "a%2Fb", "näme", "x" * 101):
        for call in (
            lambda name=name: client.predict(b"BM x", name),
            lambda name=name: client.infer(b"BM x", [name]),
            lambda name=name: client.task(name),
            lambda name=name: client.delete_task(name),
        ):
            with pytest.raises(UnknownTaskError, match="expected letters"):
                call()
        with pytest.raises(TaskNameError):
            client.put_task(name, b"x")
    assert server.asked == []


def test_a_closed_client_says_so(client: Client) -> None:
    client.close()
    for call in (client.tasks, client.ready, lambda: client.put_task("signs", b"x")):
        with pytest.raises(ClosedError, match="was closed"):
            call()


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:8000", "ftp://host", "http://", "http://:80", "http://host:0", "http://[::1"),
        *("http://host:99999", "http://host:port", "http://host/?x=1", "http://host/#x"),
        *("http://ho st", "http://host\r\nX: 1", None),
    ],
)
def test_odd_urls_are_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"^URL .*such as http://127"):
        Client(url)


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(InputError, match="no user name or password") as told:
        Client("http://me:hunter2@host")
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ("missing.png", DataError),
        ("zero\0byte.png", DataError),
        (b"", DataError),
        (b"II*\0 a TIFF", DataError),
        (None, InputError),
        (Text("\ud800"), DataError),
    ],
)
def test_what_is_not_an_image_is_not_sent(
    client: Client, server: FakeServer, image: object, error: type[Exception]
) -> None:
    for given in (image, [image, b"BM"]):
        with pytest.raises(error, match=r"image|surrogate"):
            client.predict(given, "signs")
    assert server.asked == []
