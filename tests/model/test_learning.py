"""Learning a task on a MultiTaskModel: what trains, what is captured, and what is put back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from piggyback.errors import PiggybackWarning, TaskStateError
from piggyback.masks.bits import unpack_mask
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.rule import MaskRule, ScoreInit, mask_of
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.fingerprint import IGNORED
from support.nets import (
    CASES,
    Convolutions,
    Tiny,
    assert_same_state,
    learn,
    same_bits,
    seeded,
    state_of,
)


def started(make=Convolutions, **options):
    model = MultiTaskModel(seeded(make))
    model.start_task("a", 3, **options)
    return model.train()


def trained_names(model):
    return {name for name, p in model.backbone.named_parameters() if p.requires_grad}


HEAD = {"fc.weight", "fc.bias"}
NORMS = {f"{layer}.{kind}" for layer in ("stem.1", "body.norm") for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, HEAD | set(CASES["convolutions"].masked)),
        ({"masks": False}, HEAD),
        ({"norm": "trained"}, HEAD | set(CASES["convolutions"].masked) | NORMS),
        ({"norm": "trained", "masks": False}, HEAD | NORMS),
    ],
)
def test_exactly_the_tasks_own_parameters_train(options, expected):
    model = started(**options)
    assert trained_names(model) == expected
    groups = model.parameter_groups(lr=1.0, head_lr=0.0, norm_lr=0.5)
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    rates = {("masked" in g, len(g["params"])): g["lr"] for g in groups}
    assert rates[False, 2] == 0.0
    assert rates.get((True, 5), 1.0) == 1.0
    assert rates.get((False, 4), 0.5) == 0.5
    assert model.backbone.stem[1].training == ("norm" in options)
    model.cancel_task()
    assert trained_names(model) == set()
    assert not model.backbone.stem[1].training


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_live_weights_follow_the_optimizer_and_capture_reads_its_masks(kind):
    rule = MaskRule(kind)
    model = started(rule=rule)
    base = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    groups = model.parameter_groups(lr=1e-3)
    optimizer = MaskOptimizer(groups, base=model.base_of, rule=rule, init=ScoreInit("uniform"))
    for seed in range(3):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        task = model.capture(seed=seed)
        assert task.info.provenance == {"seed": seed}
        for name in model.masked_names:
            param = model.backbone.get_parameter(name)
            mask = mask_of(optimizer.scores(param), rule)
            assert torch.equal(unpack_mask(task.masks[name]), mask)
            assert torch.equal(param, base[name] * mask)
            assert model.base_of(param) is optimizer.state[param]["base"], "held once"
    assert task.info.rule == rule


def test_a_finished_task_answers_as_it_did_in_training_but_for_the_rounding_of_its_head():
    for norm in ("frozen", "trained"):
        model = MultiTaskModel(seeded(Convolutions))
        x = torch.randn(4, 3, 8, 8)
        task = learn(model, "a", x, norm=norm, finish=False)
        answer = model(x)
        assert model.active_task == "a"
        done = model.finish_task()
        assert model.active_task == "a"
        assert model.task_names == ("a",)
        torch.testing.assert_close(model(x), answer, rtol=0.02, atol=0.01)
        for name, mask in task.masks.items():
            assert torch.equal(done.masks[name].keep, mask.keep)
        held = model.get_task("a")
        for name, mask in task.masks.items():
            assert torch.equal(held.masks[name].keep, mask.keep)


def test_an_earlier_capture_can_be_finished_with_and_is_not_changed_by_training():
    model = MultiTaskModel(seeded(Convolutions))
    x = torch.randn(4, 3, 8, 8)
    best = learn(model, "a", x, norm="trained", finish=False)
    answer = model(x)
    optimizer = MaskOptimizer(model.parameter_groups(lr=0.05), base=model.base_of)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    model.eval()
    assert not torch.equal(model(x), answer)
    model.finish_task(best)
    torch.testing.assert_close(model(x), answer, rtol=0.02, atol=0.01)
    for name, mask in best.masks.items():
        assert torch.equal(model.get_task("a").masks[name].keep, mask.keep)


def test_cancelling_restores_the_task_from_before_and_frees_the_name():
    model = MultiTaskModel(seeded(Convolutions))
    x = torch.randn(4, 3, 8, 8)
    learn(model, "a", x)
    before = state_of(model.backbone)
    learn(model, "b", x, norm="trained", finish=False)
    model.cancel_task()
    assert model.active_task == "a"
    assert model.task_names == ("a",)
    assert_same_state(model.backbone, before)
    assert all(p.grad is None for p in model.parameters())
    learn(model, "b", x)


def test_weights_changed_by_another_optimizer_are_refused():
    model = started()
    other = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    other.step()
    with pytest.raises(TaskStateError, match=r"'stem.0.weight': \d+ of 216 values .*MaskOptimizer"):
        model.capture()
    with pytest.raises(TaskStateError, match="masked=True"):
        model.finish_task()
    assert model.active_task == "a"
    model.cancel_task()
    assert_same_state(model.backbone, state_of(seeded(Convolutions)))


def test_a_custom_head_trains_travels_and_needs_its_module(tmp_path):
    def head():
        return nn.Sequential(nn.Linear(12, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))

    model = MultiTaskModel(seeded(Convolutions))
    x = torch.randn(4, 3, 8, 8)
    task = learn(model, "a", x, head=head())
    assert task.info.head_kind == "custom"
    answer = model(x, task="a")
    model.train()
    model(x, task="a")
    model.eval()
    assert torch.equal(model(x, task="a"), answer), "its batch norm stays as it was learned"
    model.save_task("a", tmp_path / "a.safetensors")
    fresh = MultiTaskModel(seeded(Convolutions))
    fresh.load_task(tmp_path / "a.safetensors", head=head())
    assert torch.equal(fresh(x, task="a"), answer)


def test_statistics_changed_behind_the_models_back_are_told():
    model = started()
    model.backbone.train()  # not model.train(): batch norm now learns statistics
    model(torch.randn(4, 3, 8, 8))
    with pytest.warns(PiggybackWarning, match=r"4 buffers changed.*'stem.1.running_mean'"):
        model.capture()
    model.cancel_task()
    assert_same_state(model.backbone, state_of(seeded(Convolutions)))


def test_buffers_that_a_module_updates_in_training_are_put_back():
    def net():
        return nn.Sequential(
            nn.utils.spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4)
        )

    before = state_of(seeded(net))
    model = MultiTaskModel(seeded(net), select="2")
    model.train()
    model(torch.randn(5, 6))
    assert not torch.equal(model.backbone[0].weight_u, before["0.weight_u"])
    model.start_task("a", 2)
    model.cancel_task()
    model.release()
    assert_same_state(model.backbone, before)


def test_a_backbones_counters_are_not_part_of_a_task():
    model = MultiTaskModel(seeded(Convolutions))
    task = learn(model, "a", torch.randn(4, 3, 8, 8), norm="trained")
    assert not any(name.endswith(IGNORED) for name in task.norm)
    model.set_task(None)
    assert int(model.backbone.stem[1].num_batches_tracked) == 7


def test_weights_that_are_exactly_zero_or_not_finite_survive():
    net = seeded(Tiny)
    with torch.no_grad():
        net.body.weight[0, :4] = torch.tensor([0.0, -0.0, torch.inf, torch.nan])
    before = state_of(net)
    model = MultiTaskModel(net)
    model.start_task("a", 2)
    optimizer = MaskOptimizer(
        model.parameter_groups(lr=0.0), base=model.base_of, init=ScoreInit("uniform")
    )
    optimizer.initialize()
    task = model.finish_task()
    assert 0 < task.density < 1
    kept = unpack_mask(task.masks["body.weight"])
    live = model.backbone.body.weight.detach()
    assert same_bits(live[kept], before["body.weight"][kept])
    assert same_bits(live[~kept], torch.zeros_like(live[~kept]))
    model.set_task(None)
    assert_same_state(net, before)


def test_task_info_says_where_the_task_comes_from():
    model = MultiTaskModel(seeded(Tiny), source="tiny")
    task = learn(model, "a", torch.randn(4, 6), classes=2, kind="classification")
    assert task.info.classes == ("0", "1")
    assert task.info.backbone.source == "tiny"
    assert task.info.backbone.fingerprint == model.fingerprint
    assert set(task.info.backbone.weights) == {"body.weight"}
    assert not learn(model, "b", torch.randn(4, 6), masks=False).info.backbone.weights
    assert replace(task, name="c").renamed("d").name == "d"
