"""Tags of words on the command line and over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from piggyback.client import Client, Text
from piggyback.serve import Engine, EngineOptions
from piggyback.zoo.load import load_backbone
from support.cli_toys import FAST, Command
from support.fake_engine import served
from support.text_toys import encoder, tagged  # noqa: F401


@pytest.fixture
def ner(piggyback: Command, encoder: Path, tagged: Path) -> Path:  # noqa: F811
    line = ("train", "--data", tagged, "--kind", "tokens", "--backbone", f"transformers:{encoder}")
    ran = piggyback(*line, *FAST, "--epochs", 12, "--method", "head", "--out", "ner.safetensors")
    assert ran.code == 0, ran.err
    return Path("ner.safetensors").resolve()


def test_from_a_table_to_spans(piggyback, ner, tagged):  # noqa: F811
    pytest.importorskip("matplotlib")
    text = "the film very is good."
    line = ("predict", "--task", ner, "--text", text, "--text", "it")
    one, two = json.loads(piggyback(*line, "--json").out)
    assert one["spans"][0].items() >= {"start": 4, "text": "film very", "label": "film"}.items()
    assert (one["text"], one["task"], two["spans"], one["classes"]) == (text, "ner", [], [])
    assert "film very (film" in piggyback(*line).out
    titles, first, *_ = piggyback(*line, "--format", "csv").out.splitlines()
    assert titles == "text,task,rank,class,probability,start,end,span"
    assert first.startswith(f"{text},ner,1,film,")
    assert first.endswith(",4,13,film very")

    measured = json.loads(
        piggyback("evaluate", ner, "--data", tagged, "--json", "--report", "found").out
    )
    assert measured["classes"]["film"].keys() == {"spans", "precision", "recall", "f1"}
    told = json.loads(piggyback("inspect", ner, "--json").out)
    assert measured["f1"] == pytest.approx(told["provenance"]["test_accuracy"], abs=0.01)
    assert told["kind"] == "tokens"
    report = json.loads(Path("found/report.json").read_text())
    assert report["numbers"]["f1"]["value"] == pytest.approx(measured["f1"], abs=1e-4)
    assert Path("found/answers.csv").read_text().startswith("sample,spans,found,right\n")
    assert "span F1" in piggyback("evaluate", ner, "--data", tagged).out


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (("--data", "photos", "--kind", "tokens"), "--kind tokens"),
        (("--data", "tagged.tsv", "--kind", "tokens"), "reads"),
        (("--data", "short.tsv", "--kind", "tokens"), "row 1: 1 tags for 2 words"),
    ],
)
def test_what_does_not_go_together_is_one_line(piggyback, tagged, colours, toy, line, wanted):  # noqa: F811
    Path("photos").symlink_to(colours)
    Path("short.tsv").write_text("text\tlabel\na film\tO\n")
    piggyback("train", *line, "--backbone", f"{toy}:build", *FAST).refuses(wanted)


def test_a_server_answers_with_spans(piggyback, ner, encoder):  # noqa: F811
    options = EngineOptions(watch_s=0, device="cpu")
    engine = Engine(load_backbone(f"transformers:{encoder}"), ner.parent, options=options)
    text = "the film very is good."
    with served(engine) as running, Client(running.address) as client:
        url = f"{running.address}/v1/tasks/ner/predict"
        (answer,) = httpx.post(url, json={"text": text}).json()["answers"]
        own, there = (
            json.loads(piggyback("predict", "--text", text, "--json", *more).out)
            for more in (("--task", ner), ("--task", "ner", "--url", running.address))
        )
        assert answer["spans"][0].items() >= {"start": 4, "end": 13, "label": "film"}.items()
        assert own[0]["spans"] == there[0]["spans"] == answer["spans"]
        assert client.predict(Text(text), "ner").spans[0].text == "film very"
        schema = httpx.get(f"{running.address}/openapi.json").json()["components"]["schemas"]
        assert schema["Span"]["properties"].keys() >= {"start", "end", "label", "probability"}
