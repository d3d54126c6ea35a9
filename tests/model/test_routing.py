"""Batches of several tasks, and how sure a task is."""

from __future__ import annotations

import pytest
import torch

from piggyback.errors import InputError
from piggyback.model.routing import confidence, run_grouped


def test_every_task_runs_once_on_all_of_its_samples():
    calls = []

    def run(name, args, kwargs):
        calls.append((name, args[0].tolist(), kwargs))
        return args[0][:, None] * {"a": 1, "b": 10, "c": 100}[name]

    x = torch.arange(5)
    out = run_grouped(run, ["b", "a", "b", "c", "a"], (x, "as it is"), {"flag": True, "y": x})
    assert [int(o) for o in out] == [0, 1, 20, 300, 4]
    assert [(name, rows) for name, rows, _ in calls] == [("b", [0, 2]), ("a", [1, 4]), ("c", [3])]
    assert calls[0][2]["flag"] is True
    assert calls[0][2]["y"].tolist() == [0, 2]


@pytest.mark.parametrize("x", [torch.zeros(3, 2), torch.tensor(1.0), "no tensor"])
def test_names_and_samples_must_be_as_many(x):
    with pytest.raises(InputError, match=r"2 task names for a batch of .*expected one name per"):
        run_grouped(lambda *_: None, ["a", "b"], (x,), {})


@pytest.mark.parametrize("answer", [None, torch.zeros(1), torch.tensor(0.0), (torch.zeros(2),)])
def test_an_answer_must_have_a_row_per_sample(answer):
    with pytest.raises(InputError, match=r"task 'a' answered with .*a row per sample"):
        run_grouped(lambda *_: answer, ["a", "a"], (torch.zeros(2),), {})


def test_confidence_falls_from_certain_to_uniform_whatever_the_number_of_classes():
    for classes in (2, 10, 1000):
        logits = torch.zeros(3, classes)
        logits[0, 0], logits[1, 0] = 1e4, 3.0
        sure = confidence(logits)
        assert sure[0] == 1
        assert 0 < sure[1] < 1
        assert sure[2] == pytest.approx(0, abs=1e-6)
    assert confidence(torch.full((1, 4), -1e4).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("logits", [torch.zeros(3), torch.zeros(2, 1), torch.zeros(1, 2, 3), [1.0]])
def test_confidence_needs_classification_outputs(logits):
    with pytest.raises(InputError, match=r"\(batch, classes >= 2\)"):
        confidence(logits)
