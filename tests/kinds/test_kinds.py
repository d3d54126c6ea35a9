"""What each kind of task makes of labels and outputs: losses, scores, answers, and what its file says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score, r2_score

from piggyback.errors import InputError, TaskFileError
from piggyback.kinds import KINDS, SCORES, kind_of
from piggyback.kinds.base import Loss
from piggyback.kinds.multilabel import best_thresholds
from piggyback.taskfile.file import load, save
from piggyback.taskfile.header import header_of
from piggyback.taskfile.task import Task, TaskInfo

CPU = torch.device("cpu")


def measured(kind, outputs, labels):
    meter = kind.meter(CPU)
    for rows, true in zip(outputs.split(7), labels.split(7), strict=True):
        meter.add(rows, kind.targets(true))
    return meter.end(lambda total: total, lambda rows: rows)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def test_every_kind_has_a_score_and_says_its_own_name():
    assert KINDS.keys() == SCORES.keys()
    for name in KINDS:
        assert kind_of(TaskInfo(name, ("a", "b"))).name == name
    with pytest.raises(InputError, match="did you mean"):
        kind_of(TaskInfo("multilable"))


def test_multilabel_scores_are_those_of_scikit_learn(generator):
    truth = torch.rand(60, 4, generator=generator) < 0.3
    outputs = (truth + torch.randn(60, 4, generator=generator)).round(decimals=1)  # with ties
    kind = kind_of(TaskInfo("multilabel", tuple("abcd"), thresholds=(0.6,) * 4))
    found = measured(kind, outputs, truth)
    wanted = average_precision_score(truth, outputs, average="macro")
    assert found.accuracy == pytest.approx(100 * wanted)
    given = outputs.sigmoid() >= 0.6
    assert found.numbers()["f1"] == pytest.approx(100 * f1_score(truth, given, average="micro"))
    loss = F.binary_cross_entropy_with_logits(outputs, truth.float())
    assert found.loss == pytest.approx(float(loss), rel=1e-5)


def test_a_label_that_no_image_has_does_not_count():
    kind = kind_of(TaskInfo("multilabel", ("a", "b")))
    found = measured(
        kind, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1, 0], [0, 0]]) > 0
    )
    assert found.accuracy == 100
    assert found.by_class()[1]["b"][:2] == (0, None)


def test_thresholds_are_those_of_the_largest_f1(generator):
    truth = (torch.rand(50, 1, generator=generator) < 0.2).float()
    outputs = truth + torch.randn(50, 1, generator=generator)
    (threshold,) = best_thresholds(outputs, truth)

    def f1(at):
        return f1_score(truth, outputs.sigmoid() >= at, zero_division=0)

    assert f1(threshold) == pytest.approx(max(f1(at / 200) for at in range(200)))
    assert best_thresholds(outputs, torch.zeros(50, 1)) == (0.5,)


@pytest.mark.parametrize("scores", [(-9.0, -7.6), (0.873, 0.8730001), (20.0, 25.0), (-60.0, -59.0)])
def test_a_threshold_parts_scores_however_near_each_other(scores):
    truth = torch.tensor([[0.0]] * 40 + [[1.0]] * 4)
    outputs = torch.where(truth > 0, scores[1], scores[0])
    (threshold,) = best_thresholds(outputs, truth)
    assert 0 < threshold <= 1
    wanted = truth if outputs.sigmoid().unique().numel() == 2 else torch.ones_like(truth)
    assert torch.equal((outputs.sigmoid() >= torch.tensor(threshold)).float(), wanted)


def test_numbers_are_measured_in_their_own_units(generator):
    truth = 100 + 20 * torch.randn(40, 2, generator=generator)
    info = TaskInfo("regression", ("a", "b"), units=("m", ""), scaling=((100.0, 20.0), (90.0, 5.0)))
    kind = kind_of(info)
    exact = kind.targets(truth)
    assert torch.allclose(kind.values(exact), truth)
    outputs = exact + 0.1 * torch.randn(40, 2, generator=generator)
    found = measured(kind, outputs, truth)
    assert found.accuracy == pytest.approx(100 * r2_score(truth, kind.values(outputs)), rel=1e-4)
    off = (kind.values(outputs) - truth).abs().mean()
    assert list(found.numbers()) == ["r2"]  # there is no sum of metres and plain numbers
    assert replace(found, units=("m", "m")).numbers()["mae"] == pytest.approx(float(off), rel=1e-4)
    assert list(found.by_class()[1]) == ["a (m)", "b"]
    (said, *_) = kind.answers(outputs, top=1)
    assert [value.unit for value in said.values] == ["m", ""]
    assert said.values[0].value == pytest.approx(float(kind.values(outputs)[0, 0]))


def test_the_same_number_everywhere_has_a_finite_score():
    kind = kind_of(TaskInfo("regression", ("a",), scaling=((1.0, 2.0),)))
    found = measured(kind, torch.tensor([[1.0]]), torch.tensor([[1.0]]))
    assert found.accuracy == pytest.approx(0)  # off by one deviation of training


def test_answers_of_several_labels_pass_their_thresholds():
    kind = kind_of(TaskInfo("multilabel", ("cat", "dog", "fox"), thresholds=(0.9, 0.2, 0.5)))
    (said,) = kind.answers(torch.tensor([[1.0, -1.0, -9.0]]), top=2)
    assert said.labels == ("dog",)
    assert [one.name for one in said.ranking] == ["cat", "dog"]
    assert 0 < said.confidence < 1


@pytest.mark.parametrize("name", ["classification", "multilabel", "regression"])
def test_every_loss_is_a_sum_over_samples_and_falls_with_better_outputs(name, generator):
    kind = kind_of(TaskInfo(name, ("a", "b", "c")))
    labels = torch.arange(6) % 3
    if name == "multilabel":
        labels = F.one_hot(labels) > 0
    elif name == "regression":
        labels = F.one_hot(labels).float()
    y = kind.targets(labels)
    good = 4 * F.one_hot(torch.arange(6) % 3).float() - (2 if name != "regression" else 0)
    good = y if name == "regression" else good
    bad = torch.randn(6, 3, generator=generator)
    for loss in kind.losses_known:
        how = Loss(loss)
        both = [kind.losses(outputs, y, how) for outputs in (good, bad)]
        assert both[0] < both[1], loss
        halves = kind.losses(bad[:2], y[:2], how) + kind.losses(bad[2:], y[2:], how)
        assert halves == pytest.approx(float(both[1]), rel=1e-5), loss


def test_guessing_costs_what_guess_says(generator):
    truth = torch.rand(200, 3, generator=generator) < 0.25
    kind = kind_of(TaskInfo("multilabel", ("a", "b", "c")))
    y = kind.targets(truth)
    constant = y.mean(0).logit().expand(200, 3)
    assert kind.guess(y) == pytest.approx(float(kind.losses(constant, y, Loss()) / 200), rel=1e-4)
    numbers = torch.randn(200, 3, generator=generator)
    kind = kind_of(TaskInfo("regression", ("a", "b", "c")))
    constant = numbers.mean(0).expand(200, 3)
    wanted = float(kind.losses(constant, numbers, Loss()) / 200)
    assert kind.guess(numbers) == pytest.approx(wanted, rel=1e-4)


# -- the file --------------------------------------------------------------------------------------


def test_files_carry_units_thresholds_and_scaling():
    for info in (
        TaskInfo("regression", ("a", "b"), units=("m", ""), scaling=((0.5, 2.0), (1.0, 3.0))),
        TaskInfo("multilabel", ("a", "b"), thresholds=(0.25, 0.5)),
    ):
        found = header_of(save(Task("x", {}, {}, info=info)))
        assert found.version == 4
        assert (found.info.units, found.info.thresholds) == (info.units, info.thresholds)
        assert load(save(Task("x", {}, {}, info=info))).info.scaling == info.scaling


def test_the_version_stays_as_low_as_it_was():
    for kind in KINDS:
        assert header_of(save(Task("x", {}, {}, info=TaskInfo(kind, ("a", "b"))))).version == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"units": ("m",)},
        {"scaling": ((0.0, 0.0), (0.0, 1.0))},
        {"scaling": ((0.0, float("nan")), (0.0, 1.0))},
        {"thresholds": (0.5, 0.5)},
        {"kind": "multilabel", "thresholds": (0.5, 1.5)},
        {"kind": "classification", "units": ("m", "m")},
    ],
)
def test_what_does_not_fit_the_outputs_is_refused(fields):
    with pytest.raises(InputError, match="expected"):
        replace(TaskInfo("regression", ("a", "b")), **fields)


@pytest.mark.parametrize(
    "change",
    [
        ('"units":["m","s"]', '"units":["m"]'),
        ('"units":["m","s"]', '"units":[]'),
        ('"units":["m","s"]', '"other":["m","s"]'),
        ('"units":["m","s"]', '"units":"ms"'),
        ('"kind":"regression"', '"kind":"multilabel"'),
    ],
)
def test_a_damaged_description_is_refused(change, monkeypatch):
    from piggyback.taskfile import header

    info = TaskInfo("regression", ("a", "b"), units=("m", "s"))
    metadata = header.to_metadata("x", info, ())
    metadata["task"] = metadata["task"].replace(*change)
    with pytest.raises(TaskFileError, match="damaged"):
        header.from_metadata(metadata)
