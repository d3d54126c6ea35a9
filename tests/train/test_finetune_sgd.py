"""The paper's fine-tuning: SGD with momentum, a tenth of the rate from half-way on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from piggyback.network.backbone import Backbone
from piggyback.train import ImageData, Recipe, train
from piggyback.train.learners import FinetuneLearner
from piggyback.train.methods import Setup
from support.training_toys import Recorder

MakeRecipe = Callable[..., Recipe]


def test_steps_are_those_made_by_hand(backbone: Backbone, recipe: MakeRecipe) -> None:
    lr, decay = 0.1, 0.02
    options = recipe("finetune", finetune_optimizer="sgd", finetune_lr=lr, weight_decay=decay)
    cpu = torch.device("cpu")
    setup = Setup("a", ("x", "y", "z"), options, backbone.preprocessing, 10, cpu, False)
    learner = FinetuneLearner(backbone, setup)
    learner.mode(training=False)  # dropout off
    by_hand = {name: p.detach().clone() for name, p in learner.network.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in by_hand.items()}
    x, y = torch.randn(6, 3, 16, 16), torch.arange(6) % 3
    for _ in range(3):
        learner.optimizer.zero_grad()
        nn.functional.cross_entropy(learner.network(x), y).backward()
        for name, p in learner.network.named_parameters():
            velocity[name] = 0.9 * velocity[name] + p.grad + decay * by_hand[name]
            by_hand[name] = by_hand[name] - lr * velocity[name]
        learner.optimizer.step()
    for name, p in learner.network.named_parameters():
        torch.testing.assert_close(p.detach(), by_hand[name], msg=name)
        assert not torch.equal(p, backbone.module.get_parameter(name)) or name.startswith("9")


def test_the_rate_is_a_tenth_after_half_of_the_epochs(
    backbone: Backbone, data: ImageData, recipe: MakeRecipe
) -> None:
    heard = Recorder()
    options = recipe(
        "finetune", finetune_optimizer="sgd", finetune_lr=5e-2, schedule="step", epochs=6
    )
    result = train(backbone, data, "a", options, listener=heard)
    assert result.accuracy >= 90
    rates = {(step.epoch, round(step.lr, 9)) for step in heard.steps}
    assert rates == {(epoch, 5e-2 if epoch <= 3 else 5e-3) for epoch in range(1, 7)}
