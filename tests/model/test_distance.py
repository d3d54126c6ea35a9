"""How far a task is from the backbone: leaving one out in closed form is leaving one out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from piggyback.model.distance import MOST, feature_skill


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
