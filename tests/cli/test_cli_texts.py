"""Texts on the command line, from a table to predictions, a server, ONNX and a pipeline's folder."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from piggyback.client import Client, Text
from piggyback.errors import PiggybackError
from piggyback.serve import Engine, EngineOptions
from piggyback.zoo.load import load_backbone
from support.cli_toys import FAST, Command
from support.fake_engine import served
from support.text_toys import encoder, reviews  # noqa: F401


@pytest.fixture
def mood(piggyback: Command, encoder: Path, reviews: Path) -> Path:  # noqa: F811
    line = ("train", "--data", reviews, "--backbone", f"transformers:{encoder}", *FAST)
    ran = piggyback(*line, "--method", "head", "--out", "mood.safetensors")
    assert ran.code == 0, ran.err
    assert " texts/s" in ran.err
    return Path("mood.safetensors").resolve()


def test_from_a_table_to_answers(piggyback, mood, reviews):  # noqa: F811
    line = ("predict", "--task", mood, "--json")
    (one, two) = json.loads(piggyback(*line, "--text", "a good film", "--text", "bad").out)
    assert (one["text"], one["task"], len(one["classes"])) == ("a good film", "mood", 2)
    Path("lines.txt").write_text("a good film\n\nbad\n")
    assert json.loads(piggyback(*line, "lines.txt").out) == [one, two]
    Path("new.csv").write_text("review,n\na good film,1\nbad,2\n")
    assert json.loads(piggyback(*line, "new.csv", "--column", "text=review").out) == [one, two]
    measured = json.loads(piggyback("evaluate", mood, "--data", reviews, "--json").out)
    Path("again.csv").write_text("text\na good film\nbad\na good film\n")
    assert json.loads(piggyback(*line, "again.csv").out) == [one, two, one]
    told = json.loads(piggyback("inspect", mood, "--json").out)
    assert measured["accuracy"] == pytest.approx(told["provenance"]["test_accuracy"], abs=0.01)
    assert told["preprocessing"]["max_length"] == 24


def test_a_report_on_texts_names_them(piggyback, mood, reviews):  # noqa: F811
    pytest.importorskip("matplotlib")
    ran = piggyback("evaluate", mood, "--data", reviews, "--report", "found")
    assert ran.code == 0, ran.err
    assert "the film is" in Path("found/answers.csv").read_text()


def test_methods_are_compared_on_texts(piggyback, encoder, reviews):  # noqa: F811
    pytest.importorskip("matplotlib")
    ran = piggyback(
        *("compare", "--data", f"mood={reviews}", "--backbone", f"transformers:{encoder}"),
        *(*FAST, "--methods", "head,masks,finetune", "--json"),
    )
    assert ran.code == 0, ran.err
    assert [row["method"] for row in json.loads(ran.out)] == ["head", "masks", "finetune"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--text", " "), "--text"),
        (("a good film",), "give a text itself as --text"),
        (("--column", "text=review", "--text", "a"), None),
        (("--column", "label=x", "--text", "a"), "--column"),
        ((), "INPUTS"),
    ],
)
def test_what_is_no_text_is_one_line(piggyback, mood, words, wanted):
    ran = piggyback("predict", *words, "--task", mood)
    if wanted is None:
        assert ran.code == 0
        return
    assert ran.code != 0
    assert wanted in ran.err
    assert "Traceback" not in ran.err


def test_texts_for_a_task_on_images_are_refused(piggyback, trained, colours, reviews, toy):  # noqa: F811
    piggyback("predict", "--text", "a", "--task", trained).refuses("sees images")
    network = ("--backbone", f"{toy}:build")
    piggyback("evaluate", trained, "--data", reviews, *network).refuses("'bad'")
    line = ("train", *network, *FAST, "--name", "x", "--data")
    piggyback(*line, reviews).refuses("texts")
    piggyback(*line, colours, "--column", "text=a").refuses("--column")


def test_images_for_a_task_on_texts_are_refused(
    piggyback,
    mood,
    colours,
    trained,
    encoder,  # noqa: F811
    reviews,  # noqa: F811
    toy,
):
    piggyback("evaluate", mood, "--data", colours).refuses()
    line = ("train", "--name", "x", "--data")
    texts = (reviews, "--backbone", f"transformers:{encoder}")
    piggyback(*line, *texts, "--from", trained).refuses("'colours'", "it is of images")
    images = (colours, "--backbone", f"{toy}:build")
    piggyback(*line, *images, "--from", mood).refuses("'mood'", "it is of texts")
    ran = piggyback(*line, *texts, "--augment-flip")
    assert (ran.code, "augment= is for images" in ran.err) == (1, True)


def test_baked_to_onnx_and_to_a_folder(piggyback, mood):
    ran = piggyback("bake", mood, "--to", "mood-pipeline")
    assert ran.code == 0, ran.err
    config = json.loads(Path("mood-pipeline/config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert Path("mood-pipeline/tokenizer.json").exists()
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    ran = piggyback("bake", mood, "--to", "mood.onnx")
    assert (ran.code, "largest difference" in ran.out) == (0, True), ran.err


def test_a_server_takes_texts_and_no_paths(piggyback, mood, encoder):  # noqa: F811
    options = EngineOptions(watch_s=0, device="cpu")
    engine = Engine(load_backbone(f"transformers:{encoder}"), mood.parent, options=options)
    with served(engine) as running, Client(running.address) as client:
        one = client.predict(Text("a good film"), "mood")
        several = client.predict([Text("a good film"), Text("bad, , , [[[[[[[[[[ {{{{")], "mood")
        assert several[0].classes == one.classes
        assert client.task("mood").max_tokens == 24
        line = ("predict", "--task", "mood", "--url", running.address, "--json")
        ran = piggyback(*line, "--text", "a good film")
        assert json.loads(ran.out)[0]["classes"][0]["class"] == one.classes[0]
        Path("more.csv").write_text("review\na poor film\na good book\n")
        for given, count in (((), 2), (("--text", "a good film"), 3)):
            ran = piggyback(*line, *given, "more.csv", "--column", "text=review")
            assert len(json.loads(ran.out)) == count, ran.err
        piggyback(*line, "--text", " ").refuses("--text")
        url = f"{running.address}/v1/tasks/mood/predict"
        headers = {"Content-Type": "text/plain; charset=UTF-8"}
        marked = httpx.post(url, content="\ufeffa good film".encode(), headers=headers).json()
        assert marked["answers"][0]["confidence"] == pytest.approx(one.confidence, abs=1e-6)
        refused = {
            "empty": {"json": {"text": "  "}},
            "both": {"json": {"text": "a", "image": "aaaa"}},
            "letters": {"content": b"\xff\xfe", "headers": {"Content-Type": "text/plain"}},
            "type": {"json": {"texts": ["a", 5]}},
            "picture": {"content": b"\x89PNG\r\n\x1a\n", "headers": {"Content-Type": "image/png"}},
            "many": {"json": {"texts": ["a"] * 100}},
        }
        for name, body in refused.items():
            found = httpx.post(url, **body)
            assert 400 <= found.status_code < 500, name
            assert "\n" not in found.json()["error"]["message"], name
        with pytest.raises(PiggybackError, match="texts and images"):
            client.predict([Text("a"), b"\x89PNG\r\n\x1a\n"], "mood")
