"""Answers collected while a task is measured are those that the score counts, for every kind."""

from __future__ import annotations

import pytest
import torch

from piggyback.model.multitask import MultiTaskModel
from piggyback.train import evaluate, from_tensors, train
from piggyback.train.outcome import outcome_of
from piggyback.train.report import report_on


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_answers_are_those_of_the_score(kind, backbone, recipe):
    generator = torch.Generator().manual_seed(5)
    images = (torch.rand(80, 3, 16, 16, generator=generator) * 255).byte()
    labels = {
        "classification": torch.arange(80) % 2,
        "multilabel": torch.rand(80, 2, generator=generator) < 0.5,
        "regression": 100 + 20 * torch.rand(80, 2, generator=generator),
    }[kind]
    data = from_tensors("x", ["a", "b"], (images, labels))
    task = train(backbone, data, "x", recipe(epochs=1)).task
    model = MultiTaskModel(backbone)
    model.add_task(task)
    score, outcome = outcome_of(model, "x", data.test)
    assert score.accuracy == pytest.approx(evaluate(model, "x", data.test).accuracy)
    assert outcome.kind == kind
    report = report_on(outcome)
    assert list(report.rows) == ["a", "b"]
    if kind == "classification":
        assert report.numbers["accuracy"].value == pytest.approx(score.accuracy)
    elif kind == "multilabel":
        found = report.numbers["mean_average_precision"].value
        assert found == pytest.approx(score.accuracy, abs=1e-3)
    else:
        assert report.numbers["a mae"].value < 100
