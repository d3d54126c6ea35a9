"""Tags of words from a table to a file, its measure, answers, a server beside other tasks, ONNX and a pipeline."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from piggyback.errors import InputError
from piggyback.kinds.tokens import spans_of
from piggyback.model.multitask import MultiTaskModel
from piggyback.schemas import Answer
from piggyback.serve import Engine, EngineOptions
from piggyback.taskfile.file import load
from piggyback.taskfile.header import header_of
from piggyback.train import evaluate, predict, train
from piggyback.train.data.table import load_table
from piggyback.train.outcome import outcome_of
from piggyback.train.report import compared, report_on
from piggyback.zoo.load import load_backbone
from piggyback.zoo.pipeline import save_pipeline
from support.text_toys import held
from support.training_toys import Recorder

TEXTS = ["the film very is good.", "a book", 'fine, "the book bad"!', "a poor ?"]


@pytest.fixture
def data(tagged):
    return load_table(tagged, "ner", kind="tokens")


@pytest.fixture
def ner(reader, data, recipe, tmp_path):
    """The file of a task that marks films and books."""
    folder = tmp_path / "run"
    train(reader, data, "ner", recipe("head", epochs=12, batch_size=8, head_lr=0.1), folder)
    return folder / "ner.safetensors"


@pytest.mark.parametrize("method", ["masks", "finetune"])
def test_tags_are_learned_from_a_table(reader, data, recipe, method, tmp_path):
    heard = Recorder()
    options = recipe(method, epochs=15, batch_size=8, head_lr=0.1, finetune_lr=5e-3)
    result = train(reader, data, "ner", options, tmp_path, listener=heard)
    assert result.accuracy > 80
    assert result.history[-1].train_loss < result.history[0].train_loss / 2
    assert heard.plans[0].what == "texts"


def test_a_file_says_that_its_task_tags(data, ner):
    header = header_of(ner.read_bytes())
    assert (header.version, header.info.kind, header.info.head_kind) == (4, "tokens", "tokens")
    assert header.info.classes == data.classes


def test_measured_again_it_is_as_good_and_reported_and_compared(reader, data, ner):
    model = held(reader, ner)
    model.load_task(ner, name="other")
    score, outcome = outcome_of(model, "ner", data.test, batch_size=5)
    assert score.numbers() == evaluate(model, "ner", data.test).numbers()
    assert score.accuracy == pytest.approx(load(ner.read_bytes()).info.provenance["test_accuracy"])
    for text, counts, (truth, called) in zip(
        data.test.texts, outcome.truth, outcome.tags, strict=True
    ):
        assert len(truth) == len(called) == len(text.split())
        there, found = (set(spans_of(tags)) for tags in (truth, called))
        assert [len(found & there), len(there), len(found)] == counts.sum(0).tolist()
    task = load(ner.read_bytes())
    short = replace(task.info, preprocessing=replace(task.info.preprocessing, max_length=4))
    model.add_task(replace(task, name="short", info=short))
    cut = outcome_of(model, "short", data.test)[1]
    for (truth, called), (_, whole) in zip(cut.tags, outcome.tags, strict=True):
        assert len(called) == len(truth) == len(whole)
        assert called[2:] == ["O"] * len(called[2:])
    made = report_on(outcome)
    for name in ("f1", "precision", "recall"):
        assert made.numbers[name].value == pytest.approx(score.numbers()[name])
    assert made.rows["film"]["f1"] == pytest.approx(score.by_class()[1]["film"][3])
    gap = compared(outcome, outcome_of(model, "other", data.test)[1])
    assert (gap["score"], gap["difference"]["value"]) == ("span F1", 0)


def test_spans_say_where_they_are_alone_and_beside_others(reader, ner):
    model = held(reader, ner)
    together = predict(model, "ner", TEXTS)
    for text, one in zip(TEXTS, together, strict=True):
        for span in one.said.spans:
            assert text[span.start : span.end] == span.text
        (alone,) = predict(model, "ner", [text])
        assert [s.model_dump(exclude={"probability"}) for s in alone.said.spans] == [
            s.model_dump(exclude={"probability"}) for s in one.said.spans
        ]
    first, second, third, _ = (
        [(s.text, s.label) for s in one.said.spans if s.probability > 0.5] for one in together
    )
    assert first == [("film very", "film")]
    assert second == [("book", "book")]
    assert ("book bad", "book") in third  # the quotes and the mark are words of their own


def test_a_server_marks_spans_beside_a_task_on_whole_texts(reader, ner, reviews, recipe, tmp_path):
    texts = load_table(reviews, "mood")
    train(reader, texts, "mood", recipe("head", epochs=2, batch_size=8), tmp_path / "other")
    mood = ner.with_name("mood.safetensors")
    (tmp_path / "other" / "mood.safetensors").rename(mood)
    model = held(reader, ner, mood)
    spans, moods = (predict(model, name, TEXTS) for name in ("ner", "mood"))
    with torch.no_grad():
        mixed = model(reader.preprocessing.batch(TEXTS[:2]), task=["ner", "mood"])
    assert [tuple(part.shape) for part in mixed] == [(8, 5), (2,)]
    assert model.infer_task(reader.preprocessing.batch(TEXTS)).names == ["mood"] * 4
    model.release()
    for options in (EngineOptions(watch_s=0), EngineOptions(watch_s=0, compile=True)):
        with Engine(reader, ner.parent, options=options) as engine:
            for one, said in zip(spans, engine.predict(TEXTS, "ner"), strict=True):
                assert [s.start for s in said.spans] == [s.start for s in one.said.spans]
                assert (said.confidence, said.ranking) == (0, ())
                again = Answer.model_validate_json(said.model_dump_json())
                assert [s.label for s in again.spans] == [s.label for s in one.said.spans]
            answers = engine.predict(TEXTS, "mood")
            assert [a.classes for a in answers] == [one.classes for one in moods]
            both = {answer.task: answer for answer in engine.infer(TEXTS[0])}
            assert both["ner"].spans
            assert both["mood"].spans is None


def test_baked_to_a_pipeline_and_to_onnx(reader, ner, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = held(reader, ner)
    baked, info = model.bake("ner").eval(), model.get_task("ner").info
    save_pipeline(baked, info, tmp_path / "baked")
    assert not (tmp_path / "baked" / "modeling_piggyback.py").exists()
    config = json.loads((tmp_path / "baked" / "config.json").read_text())
    assert config["id2label"] == {str(at): tag for at, tag in enumerate(info.classes)}
    ask = transformers.pipeline("token-classification", model=str(tmp_path / "baked"))
    text = "the film very is good"
    (one,) = predict(model, "ner", [text])
    found = [each for each in ask(text) if each["entity"] != "O"]
    assert [each["start"] for each in found] == [4, 9]
    assert [each["entity"] for each in found] == ["B-film", "I-film"]
    mean = sum(float(each["score"]) for each in found) / 2
    assert one.said.spans[0].probability == pytest.approx(mean, abs=1e-5)

    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    import onnxruntime

    from piggyback.cli.bake import to_onnx

    data, difference = to_onnx(baked, header_of(ner.read_bytes()))
    assert difference < 1e-3
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    batch = reader.preprocessing.batch(TEXTS)
    (logits,) = session.run(None, {"tokens": batch.numpy()})
    assert logits.shape == (*batch.shape, len(info.classes))


def test_a_token_classifier_of_transformers_learns_tags_too(data, encoder, recipe, tmp_path):
    network = load_backbone(f"tokens:transformers:{encoder}")
    result = train(
        network, data, "ner", recipe("head", epochs=6, batch_size=8, head_lr=0.1), tmp_path
    )
    assert result.accuracy > 60
    model = held(network, tmp_path / "ner.safetensors")
    save_pipeline(model.bake("ner").eval(), model.get_task("ner").info, tmp_path / "baked")
    config = json.loads((tmp_path / "baked" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]


def test_own_loops_learn_tags(reader, data):
    model = MultiTaskModel(reader)
    model.start_task("ner", data.classes, kind="tokens", preprocessing=reader.preprocessing)
    seen = data.train.in_memory(reader.preprocessing)
    rows = torch.arange(8)
    x, y = seen.batch(rows), seen.targets(rows, reader.preprocessing)
    with pytest.raises(InputError, match="batches"):
        model.optimizer(steps=1, batches=[(x, y)])
    optimizer = model.optimizer(steps=1)
    torch.nn.functional.cross_entropy(model(x).transpose(1, 2), y).backward()
    optimizer.step()
    assert model.finish_task().info.kind == "tokens"
