"""Batches of several tasks, how sure a task is, and how far it is from the backbone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from piggyback.errors import InputError
from piggyback.kinds.classification import confidence
from piggyback.model.distance import MOST, feature_skill
from piggyback.model.routing import run_grouped


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
    inside = run_grouped(run, ["a", "c", "a"], (x[:3],), {"batch": {"ids": [x[:3]]}})
    assert [int(o) for o in inside] == [0, 100, 2]
    assert calls[3][2]["batch"]["ids"][0].tolist() == [0, 2]


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


def twin(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Every sample answered by a ridge regression that has not seen it, centred as the whole is."""
    x = (features - features.mean(0)).double()
    y = F.one_hot(labels).double()
    y -= y.mean(0)
    ridge = x.square().sum(1).mean()
    right = 0
    for i in range(len(x)):
        keep = torch.arange(len(x)) != i
        gram = x[keep] @ x[keep].T + ridge * torch.eye(len(x) - 1)
        answer = x[i] @ x[keep].T @ torch.linalg.solve(gram, y[keep])
        right += int(answer.argmax() == labels[i])
    guess = labels.bincount().max() / len(labels)
    return float(max(0.0, (right / len(x) - guess) / (1 - guess)))


@pytest.mark.parametrize("noise", [0.3, 2.0, 20.0])
@pytest.mark.parametrize("features", [3, 80])
def test_the_closed_form_is_its_readable_twin(noise, features):
    torch.manual_seed(0)
    labels = torch.arange(60) % 4
    x = F.one_hot(labels).float() @ torch.randn(4, features) + noise * torch.randn(60, features)
    assert feature_skill(x, labels) == pytest.approx(twin(x, labels), abs=1e-6)


def test_it_is_0_for_noise_and_1_for_what_is_told_apart():
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    assert feature_skill(F.one_hot(labels).float(), labels) == 1.0
    assert feature_skill(torch.randn(300, 50), labels) < 0.1
    skewed = (torch.arange(300) < 270).long()
    assert (
        feature_skill(torch.randn(300, 50), skewed) < 0.1
    )  # guessing the larger class is no skill


@pytest.mark.parametrize("labels", [torch.zeros(5).long(), torch.arange(5)])
def test_nothing_to_tell_apart_is_no_error(labels):
    assert feature_skill(torch.ones(5, 3), labels) == 0.0


def test_many_samples_are_thinned_out():
    labels = torch.arange(10 * MOST) % 2
    assert feature_skill(labels[:, None, None].float().expand(-1, 2, 2), labels) == 1.0
