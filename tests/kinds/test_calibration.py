"""A temperature and a threshold: found on val, kept in the file, and seen in every answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from piggyback.errors import InputError, TaskFileError
from piggyback.kinds import kind_of
from piggyback.kinds.calibration import AbstainAt, fit_temperature, threshold_for
from piggyback.model.multitask import MultiTaskModel
from piggyback.serve import Engine, EngineOptions
from piggyback.taskfile import header
from piggyback.taskfile.file import load, save
from piggyback.taskfile.header import header_of
from piggyback.taskfile.task import Task, TaskInfo
from piggyback.train import Recipe, from_tensors, predict, train
from support.training_toys import Recorder


def logits(n: int, sharpness: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from the softmax of logits, which are then made sharper than that."""
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, 4, generator=generator)
    labels = torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]
    return sharpness * z, labels


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_made_logits_too_sure_or_too_shy(sharpness: float) -> None:
    z, labels = logits(4000, sharpness)
    found = fit_temperature(z, labels)
    assert found == pytest.approx(sharpness, rel=0.05)
    best = F.cross_entropy(z / found, labels)
    for other in (0.9 * found, 1.1 * found):
        assert best < F.cross_entropy(z / other, labels)


def test_all_right_is_no_proof_of_certainty() -> None:
    z = torch.eye(3).repeat(20, 1)
    found = fit_temperature(z, z.argmax(1))
    assert 0.1 < found < 0.5
    assert (z / found).softmax(1).max() < 0.9999


def test_a_threshold_about_holds_for_images_to_come() -> None:
    reached = []
    for seed in range(40):
        z, labels = logits(2200, seed=seed)
        sure, right = z.softmax(1).max(1).values, z.argmax(1) == labels
        least = threshold_for(sure[:200], right[:200], AbstainAt("accuracy", 0.8))
        assert least is not None
        given = sure[200:] >= least
        reached.append(float(right[200:][given].float().mean()))
    assert sum(reached) / len(reached) == pytest.approx(0.8, abs=0.02)


def test_a_share_of_answers_is_given_and_what_cannot_be_reached_is_none() -> None:
    sure = torch.linspace(0.1, 1, 200)
    right = torch.ones(200, dtype=torch.bool)
    least = threshold_for(sure, right, AbstainAt("coverage", 0.95))
    assert (sure >= least).float().mean() == pytest.approx(0.95)
    assert threshold_for(sure[:40], right[:40], AbstainAt("accuracy", 0.98)) is None
    assert threshold_for(sure, right, AbstainAt("accuracy", 0.98)) == pytest.approx(0.1)
    assert threshold_for(sure, ~right, AbstainAt("accuracy", 0.5)) is None


@pytest.mark.parametrize(
    "text", ["accuracy", "accuracy=2", "accuracy=nan", "recall=0.9", "0.9", "coverage=x"]
)
def test_other_targets_are_refused_with_the_recipe(text: str) -> None:
    with pytest.raises(InputError, match="abstain_at"):
        Recipe(abstain_at=text)


def test_a_file_without_it_is_what_it_was_and_answers_as_it_did() -> None:
    info = TaskInfo(classes=("a", "b", "c"))
    assert header_of(save(Task("x", {}, {}, info=info))).version == 1
    z = torch.randn(5, 3)
    plain, warm = kind_of(info), kind_of(replace(info, calibration=(2.0, 0.5)))
    for one, other, row in zip(plain.answers(z, 3), warm.answers(z, 3), z, strict=True):
        assert one.abstained is None
        assert [each.name for each in one.ranking] == [each.name for each in other.ranking]
        chances = [each.probability for each in other.ranking]
        assert chances == pytest.approx(sorted((row / 2).softmax(0).tolist(), reverse=True))
        assert other.abstained == (other.confidence < 0.5)


def test_the_file_keeps_it_and_refuses_what_it_cannot_be() -> None:
    info = TaskInfo(classes=("a", "b"), calibration=(1.25, 0.5))
    data = save(Task("x", {}, {}, info=info))
    assert load(data).info.calibration == (1.25, 0.5)
    assert header_of(data).version == 4
    for wrong in ((1.0,), (0.0, 0.5), (1.0, 2.0), (float("nan"), 0.0), ("a", 0.0)):
        with pytest.raises(InputError, match="calibration"):
            TaskInfo(classes=("a", "b"), calibration=wrong)
    with pytest.raises(InputError, match="calibration"):
        TaskInfo("regression", ("a",), calibration=(1.0, 0.0))
    for change in ("[-1.25,0.5]", "[1.25]", '"1"'):
        metadata = header.to_metadata("x", info, ())
        metadata["task"] = metadata["task"].replace("[1.25,0.5]", change)
        with pytest.raises(TaskFileError, match="damaged"):
            header.from_metadata(metadata)


def noisy(n: int = 700, seed: int = 3):
    """Red, green and blue images of which a fifth have another label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = (torch.rand(n, 3, 16, 16, generator=generator) * 120).byte()
    images[torch.arange(n), labels] += 100
    flipped = torch.rand(n, generator=generator) < 0.2
    labels = torch.where(flipped, (labels + 1) % 3, labels)
    return from_tensors("colours", ["blue", "green", "red"], (images, labels), val_fraction=0.2)


def test_training_fits_both_and_every_answer_has_them(backbone, recipe, tmp_path) -> None:
    data, told = noisy(), Recorder()
    options = recipe(epochs=4, abstain_at="coverage=0.5", label_smoothing=0.0)
    result = train(backbone, data, "colours", options, tmp_path, listener=told)
    temperature, least = result.task.info.calibration
    assert temperature != 1
    assert 0 < least < 1
    assert any("temperature" in line and "coverage=0.5" in line for line in told.notices)
    assert "temperature" in result.provenance["fitted"]

    again = train(backbone, data, "colours", options, tmp_path, resume=True)
    assert again.task.info.calibration == (temperature, least)

    model = MultiTaskModel(backbone)
    model.load_task(tmp_path / "colours.safetensors")
    places = []
    for i in range(24):
        places.append(tmp_path / f"{i}.png")
        Image.fromarray(data.test.images[i].permute(1, 2, 0).numpy()).save(places[-1])
    found = predict(model, "colours", places, top=3)
    assert {one.said.abstained for one in found} == {True, False}
    with torch.inference_mode():
        sure = model.infer_task(data.test.images[:1].float()).confidence
    assert 0 <= float(sure[0, 0]) <= 1
    folder = tmp_path / "served"
    folder.mkdir()
    (tmp_path / "colours.safetensors").rename(folder / "colours.safetensors")
    with Engine(
        model.release(), folder, options=EngineOptions(watch_s=0, decode_apart=False)
    ) as engine:
        answers = engine.predict(places, "colours", top_k=3)
    for one, answer in zip(found, answers, strict=True):
        assert answer.abstained == one.said.abstained
        assert answer.confidence == pytest.approx(one.said.confidence, abs=1e-5)
        assert json.loads(answer.model_dump_json())["abstained"] == answer.abstained


def test_few_val_images_fit_nothing_and_it_is_said(backbone, recipe, data) -> None:
    told = Recorder()
    task = train(backbone, data, "colours", recipe(abstain_at="accuracy=0.9"), listener=told).task
    assert task.info.calibration == ()
    assert any("val samples" in line and "accuracy=0.9" in line for line in told.notices)


def test_a_target_that_no_confidence_reaches_is_said(backbone, recipe) -> None:
    told = Recorder()
    options = recipe(epochs=1, abstain_at="accuracy=0.999")
    task = train(backbone, noisy(), "colours", options, listener=told).task
    assert task.info.calibration[1] == 0
    assert any("no answer will be marked" in line for line in told.notices)
