"""``piggyback predict --url``, against a server that answers as it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.fake_engine import FakeEngine, served
from support.fake_server import Asked, FakeServer, Told, answer, as_a_server, refusal, serving


def behave(asked: Asked) -> Told:
    """Classes named after the task; of the two tasks, letters is the surer."""
    path, _, query = asked.path.partition("?")
    top = int(query.rpartition("top_k=")[2])
    count = len(as_a_server(asked).content.get("answers") or as_a_server(asked).content["images"])

    def one(task: str) -> dict[str, object]:
        sure = 0.75 if task == "letters" else 0.25
        names = [f"{task} {rank}" for rank in range(top)]
        return answer(task, *names, confidence=sure).model_dump(mode="json")

    if path == "/v1/predict":
        answers = [one("letters"), one("signs")]
        return Told(
            200, {"images": [{"task": "letters", "inferred": True, "answers": answers}] * count}
        )
    return Told(200, {"answers": [one(path.split("/")[3])] * count})


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer(behave)) as fake:
        yield fake


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        pixels = np.full((4, 4, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_one_task_answers_for_every_image(piggyback, server, photos):
    ran = piggyback("predict", photos, "--url", server.url, "--task", "signs", "--json")
    told = json.loads(ran.out)
    assert [Path(one["file"]).name for one in told] == ["0.png", "1.png", "2.png"]
    for one in told:
        assert (one["task"], one["confidence"]) == ("signs", 0.25)
        assert [held["class"] for held in one["classes"]] == ["signs 0", "signs 1", "signs 2"]
    assert len(server.asked) == 1
    line = ("predict", photos, "--url", server.url, "--task", "signs")
    piggyback(*line, "--batch-size", "1")
    assert len(server.asked) == 4


def test_a_folder_for_maps_is_not_for_classes(piggyback, server, photos, tmp_path):
    line = ("predict", photos, "--url", server.url, "--task", "signs", "--out", tmp_path / "maps")
    piggyback(*line).refuses("--out is for the label maps of a segmentation task")
    assert not (tmp_path / "maps").exists()


def test_several_tasks_answer_all_or_the_surest(piggyback, server, photos):
    line = ("predict", photos, "--url", server.url, "--task", "signs", "--task", "letters")
    every = json.loads(piggyback(*line, "--json").out)
    assert [one["task"] for one in every] == ["signs", "letters"] * 3
    assert [Path(one["file"]).stem for one in every] == ["0", "0", "1", "1", "2", "2"]
    surest = json.loads(piggyback(*line, "--json", "--infer-task").out)
    assert [one["task"] for one in surest] == ["letters"] * 3


def test_without_names_the_server_chooses(piggyback, server, photos):
    ran = piggyback("predict", photos, "--url", server.url, "--infer-task", "--json")
    assert [one["task"] for one in json.loads(ran.out)] == ["letters"] * 3
    assert "task=" not in server.asked[0].path
    ran = piggyback("predict", photos, "--url", server.url)
    ran.refuses("--task NAME, or --infer-task")


def test_the_token_comes_from_a_file_or_the_environment(
    piggyback, server, photos, tmp_path, monkeypatch
):
    line = ("predict", photos, "--url", server.url, "--task", "signs")
    monkeypatch.setenv("PIGGYBACK_TOKEN", "from-environment")
    piggyback(*line)
    (tmp_path / "token").write_text("from-file\n")
    piggyback(*line, "--token-file", tmp_path / "token")
    sent = [asked.headers["authorization"] for asked in server.asked]
    assert sent == ["Bearer from-environment", "Bearer from-file"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "sings"), "did you mean 'signs'?"),
        (("--task", "signs.safetensors"), "a task's name on the server, such as signs\n"),
        (("--task", "tasks/signs.safetensors"), "a task's name on the server, such as signs\n"),
        (("--task", "signs", "--backbone", "timm:resnet18"), "--backbone: of no use with --url"),
        (("--task", "signs", "--checkpoint", "x"), "--checkpoint: of no use with --url"),
        (("--task", "signs", "--token-file", "none"), "token file 'none': cannot be read"),
        (("--task", "signs", "--url", "http://127.0.0.1:1"), "cannot be reached"),
    ],
)
def test_what_does_not_go_with_a_server(piggyback, server, photos, options, words):
    server.script = [refusal(404, "unknown_task", "unknown task 'sings'; did you mean 'signs'?")]
    piggyback("predict", photos, "--url", server.url, *options).refuses(words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "signs"), "such as signs.safetensors; the name of a task on a server needs"),
        (("--task", "a.safetensors", "--token-file", "x"), "--token-file: it is for a server"),
    ],
)
def test_what_needs_a_server(piggyback, photos, options, words):
    piggyback("predict", photos, *options).refuses(words)


def test_bad_images_are_left_out_if_asked(piggyback, photos):
    (photos / "1.png").write_bytes(b"no image")
    with served(FakeEngine()) as running:
        # The pictures are none that this engine knows: to it all are bad, of which one never goes out.
        line = ("predict", photos, "--url", running.address, "--task", "colours")
        ran = piggyback(*line, "--skip-bad")
        assert ran.code == 1
        assert ran.err.count("left out: ") == 3
        assert "error: none of 3" in ran.err
        piggyback(*line).refuses("0.png")
        piggyback(*line).refuses("--skip-bad")
