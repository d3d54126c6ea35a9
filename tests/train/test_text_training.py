"""A task on texts from a table to its file, its measure, answers, a server, ONNX and a pipeline, at toy size."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fastapi.testclient import TestClient

from piggyback.errors import BackboneError, BackboneMismatchError, DataError, InputError
from piggyback.images.preprocessing import Preprocessing
from piggyback.masks.rule import mask_lr, reach_for
from piggyback.model.multitask import MultiTaskModel
from piggyback.serve import Engine, EngineOptions, create_app
from piggyback.taskfile.file import load, save
from piggyback.texts.preprocessing import Text
from piggyback.train import Recipe, evaluate, predict, train
from piggyback.train.data.table import load_table
from piggyback.train.data.text import TextSet, by_length
from piggyback.zoo.load import load_backbone
from piggyback.zoo.pipeline import save_pipeline
from support.text_toys import WORDS, held, write_encoder
from support.training_toys import Recorder, assert_same, interrupted


@pytest.fixture
def texts(reviews):
    return load_table(reviews, "mood")


@pytest.fixture
def mood(reader, texts, recipe, tmp_path):
    """The file of a task that tells good reviews from bad ones."""
    options = recipe("head", epochs=12, batch_size=8, head_lr=0.1)
    train(reader, texts, "mood", options, tmp_path / "run")
    return tmp_path / "run" / "mood.safetensors"


@pytest.mark.parametrize("method", ["masks", "finetune"])
def test_a_task_is_learned_from_a_table(reader, texts, recipe, method, tmp_path):
    heard = Recorder()
    options = recipe(method, epochs=25, batch_size=8, head_lr=0.1, finetune_lr=5e-3)
    result = train(reader, texts, "mood", options, tmp_path, listener=heard)
    assert result.accuracy > 75
    assert heard.plans[0].what == "texts"
    assert "0 of" in heard.plans[0].size_reason
    assert "24 tokens" in heard.plans[0].size
    assert result.provenance["recipe"]["max_length"] == 24


def test_a_transformer_has_its_own_rate(reader, texts, recipe):
    done = train(reader, texts, "a", recipe(mask_lr=None, epochs=1)).provenance
    again = Recipe.from_json(done["recipe"])  # what a task says of itself trains another
    assert train(reader, texts, "b", again).provenance["recipe"] == done["recipe"]
    steps, reach = done["steps_per_epoch"], reach_for(done["feature_skill"])
    assert done["peak_lr"][0] == pytest.approx(mask_lr(steps, warmup=recipe().warmup, reach=reach))


def test_texts_that_are_cut_are_counted(reader, texts, recipe):
    heard = Recorder()
    train(reader, texts, "mood", recipe(epochs=1, max_length=8), listener=heard)
    longer = texts.train.longer_than(replace(reader.preprocessing, max_length=8))
    assert longer > 0
    assert f"{longer} of" in heard.plans[0].size_reason
    with pytest.raises(InputError, match="max_length 99"):
        train(reader, texts, "mood", recipe(epochs=1, max_length=99))


def test_interrupted_runs_end_in_the_same_bits(reader, texts, recipe, tmp_path):
    options = recipe(epochs=3, batch_size=8)
    whole = train(reader, texts, "mood", options)
    assert_same(interrupted(reader, texts, "mood", options, tmp_path).task, whole.task)


def test_the_answer_does_not_depend_on_what_shares_the_batch(reader, mood):
    model = held(reader, mood)
    given = ["good", "the film is very very very bad , , , ,", "the book is fine"]
    together = predict(model, "mood", given)
    for text, one in zip(given, together, strict=True):
        (alone,) = predict(model, "mood", [text])
        assert one.file == text
        assert alone.classes == one.classes
        assert alone.probabilities == pytest.approx(one.probabilities, abs=1e-5)


def test_measured_again_it_is_as_good(reader, mood, texts):
    model = held(reader, mood)
    found = evaluate(model, "mood", texts.test)
    assert found.accuracy == pytest.approx(load(mood.read_bytes()).info.provenance["test_accuracy"])


def test_one_batch_mixes_tasks(reader, mood):
    model = held(reader, mood)
    model.load_task(mood, name="other")
    batch = reader.preprocessing.batch(["good", "the film is bad", "fine"])
    with torch.no_grad():
        mixed = model(batch, task=["mood", "other", "mood"])
        plain = model(batch, task="mood")
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(mixed, plain, strict=True))


# -- what does not go together ---------------------------------------------------------------------


def test_another_tokenizer_is_refused(mood, tmp_path):
    swapped = (*WORDS[:8], WORDS[9], WORDS[8], *WORDS[10:])
    other = load_backbone(f"transformers:{write_encoder(tmp_path / 'other', swapped)}")
    model = MultiTaskModel(other)
    with pytest.raises(BackboneMismatchError, match="tokenizer"):
        model.load_task(mood)
    assert model.task_names == ()
    model.release()
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mood.safetensors").write_bytes(mood.read_bytes())
    with Engine(other, folder, options=EngineOptions(watch_s=0)) as engine:
        assert "tokenizer" in engine.refused()["mood.safetensors"]


def test_images_and_texts_are_not_mixed_up(reader, texts, data, recipe, encoder):
    images = load_backbone("timm:resnet18", pretrained=False)
    with pytest.raises(InputError, match="texts"):
        train(images, texts, "mood", recipe(epochs=1))
    with pytest.raises(InputError, match="images"):
        train(reader, data, "colours", recipe(epochs=1))
    with pytest.raises(InputError, match="image_size"):
        train(reader, texts, "mood", recipe(epochs=1, image_size=64))
    with pytest.raises(InputError, match="max_length"):
        train(images, data, "colours", recipe(epochs=1, max_length=8))
    with pytest.raises(InputError, match="image size"):
        load_backbone(f"transformers:{encoder}", image_size=64)
    with pytest.raises(BackboneError, match="tokens:timm"):
        load_backbone("tokens:timm:resnet18")
    val = replace(data.val, classes=texts.classes, labels=data.val.labels % 2)
    with pytest.raises(DataError, match="one of them"):
        replace(data, train=texts.train, val=val)


def test_a_folder_without_a_tokenizer_says_so(encoder, tmp_path):
    for file in encoder.iterdir():
        if "token" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(BackboneError, match="tokenizer"):
        load_backbone(f"transformers:{tmp_path}")


# -- serving ---------------------------------------------------------------------------------------


def test_a_server_answers_for_texts_of_any_length(reader, mood):
    model = held(reader, mood)
    given = ["good", "the film is very very very bad , , , ,", "the book is fine"]
    wanted = predict(model, "mood", given)
    bare = Engine(model.release(), mood.parent, options=EngineOptions(watch_s=0))
    with bare, pytest.raises(InputError, match="tokenizer"):
        bare.predict("good", "mood")
    with Engine(replace(reader), mood.parent, options=EngineOptions(watch_s=0)) as engine:
        answers = engine.predict(given, "mood")
        assert engine.task("mood").max_tokens == 24
        assert engine.task("mood").image_size is None
        for wrong in (b"\x89PNG", torch.zeros(3, 8, 8), 5):
            with pytest.raises(InputError, match="text"):
                engine.predict(wrong, "mood")
        with pytest.raises(DataError, match="text"):
            engine.predict(" ", "mood")
        # One that cannot be used keeps no other from being answered.
        some = engine.predict([given[0], " ", "a" * 2_000_000], "mood", return_errors=True)
        assert [getattr(one, "code", None) for one in some] == [None, "bad_image", "too_large"]
        client = TestClient(create_app(engine))
        said = client.post("/v1/tasks/mood/predict", json={"texts": [given[0], " "]}).json()
        assert [one and one["version"] for one in said["answers"]] == [answers[0].version, None]
        assert [one["index"] for one in said["errors"]] == [1]
        # In a form as well, of any length, several of them.
        long = "the film is good " * 200
        form = [("text", (None, text)) for text in (given[0], long)]
        said = client.post("/v1/tasks/mood/predict", files=form).json()
        assert [one["version"] for one in said["answers"]] == [answers[0].version] * 2
    for one, said in zip(wanted, answers, strict=True):
        assert said.classes == one.classes
        assert said.probabilities == pytest.approx(one.probabilities, abs=1e-5)


def test_a_text_of_a_strangers_is_no_path():
    from piggyback.serve.inputs import prepare

    with pytest.raises(InputError, match="expected an image, found a text"):
        prepare(Text(__file__), Preprocessing(8), max_pixels=100)


# -- order and export ------------------------------------------------------------------------------


def test_an_epochs_batches_hold_every_text_once_and_waste_little():
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(3, 60, (1003,), generator=generator).tolist()
    order = by_length(lengths, seed=1, epoch=2, batch_size=16)
    assert sorted(order.tolist()) == list(range(1003))
    assert torch.equal(order, by_length(lengths, seed=1, epoch=2, batch_size=16))
    assert not torch.equal(order, by_length(lengths, seed=1, epoch=3, batch_size=16))
    held = torch.tensor(lengths)[order[:992]].view(-1, 16)
    assert held.sum() / (held.amax(1) * 16).sum() > 0.9
    mixed = torch.tensor(lengths)[:992].view(-1, 16)
    assert mixed.sum() / (mixed.amax(1) * 16).sum() < 0.7


def test_bad_sets_of_texts_are_refused():
    labels = torch.tensor([0, 1])
    for wrong in (("a", ""), ("a", 3), ("a", None)):
        with pytest.raises(DataError, match="text 1"):
            TextSet(("x", "y"), labels, wrong)
    with pytest.raises(DataError, match="labels"):
        TextSet(("x", "y"), labels, ("a",))


@pytest.mark.parametrize(
    "said",
    [
        {"calibration": (2.5, 0.0)},
        {"kind": "multilabel", "thresholds": (0.2, 0.7)},
        {"kind": "regression", "scaling": ((1150.0, 7.5), (-2.0, 0.1)), "units": ("EUR", "")},
    ],
    ids=["classification", "multilabel", "regression"],
)
def test_a_baked_folder_is_a_pipeline(reader, mood, said, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    task = load(mood.read_bytes())
    task = replace(task, info=replace(task.info, **{"calibration": (), **said}))
    mood.write_bytes(save(task))
    model = held(reader, mood)
    folder = tmp_path / "baked"
    save_pipeline(model.bake("mood").eval(), model.get_task("mood").info, folder)
    ask = transformers.pipeline("text-classification", model=str(folder), trust_remote_code=True)
    given = ["the film is good", "a very bad book", "it was poor ."]
    for found, one in zip(ask(given, top_k=None), predict(model, "mood", given), strict=True):
        scores = {each["label"]: each["score"] for each in found}
        values = one.said.values and {v.name: v.value for v in one.said.values}
        assert scores == pytest.approx(
            values or dict(zip(one.classes, one.probabilities, strict=True)), abs=1e-5, rel=1e-5
        )
    kept = json.loads((folder / "config.json").read_text()).get("thresholds", {})
    assert kept == dict(zip(task.info.classes, task.info.thresholds, strict=False))
    with pytest.raises(ValueError, match="trust_remote_code"):  # never a random classifier
        transformers.pipeline("text-classification", model=str(folder), trust_remote_code=False)
    with pytest.raises(BackboneError):
        load_backbone(f"transformers:{folder}")
    with pytest.raises(InputError, match="not empty"):
        save_pipeline(model.bake("mood"), model.get_task("mood").info, folder)


def test_a_classifier_of_transformers_stays_one(reviews, recipe, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write_encoder(tmp_path / "classifier", kind="BertForSequenceClassification")
    network = load_backbone(f"transformers:{folder}")
    assert type(network.module).__name__ == "BertForSequenceClassification"
    options = recipe("head", epochs=6, batch_size=8, head_lr=0.1)
    train(network, load_table(reviews), "mood", options, tmp_path / "run")
    model = held(network, tmp_path / "run" / "mood.safetensors")
    save_pipeline(model.bake("mood").eval(), model.get_task("mood").info, tmp_path / "baked")
    ask = transformers.pipeline("text-classification", model=str(tmp_path / "baked"))
    (one,) = predict(model, "mood", ["the film is good"])
    (found,) = ask(["the film is good"])
    assert found["label"] == one.classes[0]
    assert found["score"] == pytest.approx(one.probabilities[0], abs=1e-4)
