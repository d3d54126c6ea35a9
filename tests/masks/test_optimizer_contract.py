"""MaskOptimizer is a torch.optim.Optimizer: what tools do with optimizers works on it too."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from piggyback.errors import CheckpointError, InputError
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.rule import ScoreInit
from support.nets import Tiny, seeded


def built(net=None, inner=torch.optim.Adam, masked=True, **options):
    net = net or seeded(Tiny)
    groups = [
        {"params": [net.body.weight], "masked": masked, "lr": 1e-2},
        {"params": [net.body.bias, *net.head.parameters()], "lr": 1e-2},
    ]
    return net, MaskOptimizer(groups, inner, **options)


def step(net, optimizer, seed=0):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), torch.arange(8) % 4).backward()
    optimizer.step()


def assert_same(net, other):
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_step_hooks_run_and_see_the_real_parameters():
    net, optimizer = built()
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append((o is optimizer, "before")))
    optimizer.register_step_post_hook(
        lambda o, *_: seen.append((net.body.weight.all().item(), "after"))
    )
    for seed in range(5):
        step(net, optimizer, seed)
    assert seen[0] == (True, "before")
    assert seen[-1] == (False, "after"), "the live weights are written when the hook runs"
    assert len(seen) == 10


def test_state_dict_hooks_see_and_change_what_is_saved_and_loaded():
    net, optimizer = built()
    step(net, optimizer)
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, s: seen.append(sorted(s["state"][0])))
    state = optimizer.state_dict()
    assert seen == ["pre", ["base", "exp_avg", "exp_avg_sq", "scores", "step"]]
    optimizer.register_load_state_dict_pre_hook(
        lambda o, s: seen.append("load") or {**s, "extra": 1}
    )
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    optimizer.load_state_dict(state)
    assert seen[2:] == ["load", "loaded"]
    assert sorted(optimizer.state[net.body.weight]) == ["base", "scores"]
    assert sorted(optimizer.state[net.head.weight]) == ["exp_avg", "exp_avg_sq", "step"]


def test_a_parameter_without_gradient_is_left_where_it_is():
    net, optimizer = built(init=ScoreInit("uniform"))
    optimizer.initialize()
    before = optimizer.scores(net.body.weight).clone()
    net.body.weight.requires_grad_(False)
    step(net, optimizer)
    assert torch.equal(optimizer.scores(net.body.weight), before)


def test_a_closure_is_called_with_gradients_and_its_loss_returned():
    net, optimizer = built()

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(2, 6)).square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss > 0
    assert not torch.equal(net.head.weight, seeded(Tiny).head.weight)


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda pair: pickle.loads(pickle.dumps(pair)),
        lambda pair: torch.load(saved(pair), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("steps", [0, 3])
def test_copies_with_their_model_go_on_bit_for_bit(copied, steps):
    pair = built(grad_scale="mean")
    torch.optim.lr_scheduler.StepLR(pair[1], 10)  # wraps the step of this very object
    for seed in range(steps):
        step(*pair, seed)
    other = copied(pair)
    for seed in range(steps, 6):
        step(*pair, seed)
    assert torch.equal(other[0].head.weight, other[1].param_groups[1]["params"][1])
    for seed in range(steps, 6):
        step(*other, seed)
    assert_same(pair[0], other[0])
    assert not pair[0].body.weight.all()


def saved(pair):
    buffer = io.BytesIO()
    torch.save(pair, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("steps", [0, 3])
def test_a_round_trip_of_the_state_changes_nothing(steps):
    """As Accelerate's ``prepare`` does, before the first step too."""
    net, optimizer = built()
    twin_net, twin = built()
    for seed in range(steps):
        step(net, optimizer, seed)
        step(twin_net, twin, seed)
    optimizer.load_state_dict(optimizer.state_dict())
    for seed in range(steps, 6):
        step(net, optimizer, seed)
        step(twin_net, twin, seed)
    assert_same(net, twin_net)


def test_a_fresh_state_resets_a_trained_optimizer():
    net, optimizer = built()
    fresh = copy.deepcopy(optimizer.state_dict())
    step(net, optimizer)
    optimizer.load_state_dict(fresh)
    assert not optimizer.state
    with pytest.raises(InputError, match="no scores"):
        optimizer.scores(net.body.weight)


@pytest.mark.parametrize("masked", [True, False])
def test_distributed_checkpoint_helpers_save_and_restore_by_name(masked):
    net, optimizer = built(masked=masked)
    for seed in range(3):
        step(net, optimizer, seed)
    before = copy.deepcopy(net.state_dict())
    state = get_optimizer_state_dict(net, optimizer)
    assert ("scores" in state["state"]["body.weight"]) == masked
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), "asking for the state is no step"
    other, restored = built(masked=masked)
    other.load_state_dict(before)
    set_optimizer_state_dict(other, restored, copy.deepcopy(state))
    for seed in range(3, 6):
        step(net, optimizer, seed)
        step(other, restored, seed)
    assert_same(net, other)


class Counting(torch.optim.SGD):
    """An inner optimizer that keeps a counter in its groups, as schedule-free ones do."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1


def test_what_an_inner_optimizer_keeps_in_its_groups_lives_on():
    net, optimizer = built(inner=Counting)
    for seed in range(3):
        step(net, optimizer, seed)
    assert [group["k"] for group in optimizer.param_groups] == [3, 3]
    other_net, other = built(inner=Counting)
    other.load_state_dict(optimizer.state_dict())
    step(other_net, other)
    assert other.inner.param_groups[0]["k"] == 4


def test_changed_options_reach_the_inner_optimizer():
    net, optimizer = built()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(net, optimizer)
    assert torch.equal(net.head.weight, seeded(Tiny).head.weight)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    step(net, optimizer)
    assert (
        optimizer.inner.param_groups[0]["betas"]
        == optimizer.param_groups[0]["betas"]
        != (0.9, 0.999)
    )


def test_a_parameter_twice_is_refused_and_changes_nothing():
    net, optimizer = built()
    step(net, optimizer)
    for params in ([net.body.weight], [net.head.bias]):
        with pytest.raises(ValueError, match="more than one parameter group"):
            optimizer.add_param_group({"params": params, "masked": True})
    assert len(optimizer.param_groups) == len(optimizer.inner.param_groups) == 2
    step(net, optimizer)


def test_named_parameters_are_taken():
    net = seeded(Tiny)
    optimizer = MaskOptimizer(
        [
            {"params": [("body.weight", net.body.weight)], "masked": True},
            {"params": list(net.head.named_parameters())},
        ],
        lr=1e-2,
    )
    step(net, optimizer)
    assert optimizer.state_dict()["param_groups"][1]["param_names"] == ["weight", "bias"]


def test_a_step_is_seen_by_autograd():
    net, optimizer = built()
    x = torch.randn(2, 6, requires_grad=True)
    loss = net(x).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("state", [{}, None, {"model": {}, "optimizer": {}}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(CheckpointError, match="param_groups"):
        built()[1].load_state_dict(state)


def held_elsewhere(net, **options):
    """An optimizer that is told of the base weights, as a MultiTaskModel's is."""
    base = net.body.weight.detach().clone()
    return built(net, base=lambda _: base, **options)


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_state_of_another_backbone_is_refused_where_the_base_weights_are_known(old):
    net, optimizer = built() if old else held_elsewhere(seeded(Tiny))
    step(net, optimizer)
    state = optimizer.state_dict()
    assert ("base" in state["state"][0]) == old
    other, loading = held_elsewhere(seeded(Tiny, seed=1))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointError, match="not this backbone's"):
        loading.load_state_dict(state)
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())
    assert not loading.state
    low, loading = held_elsewhere(seeded(Tiny).bfloat16())
    loading.load_state_dict(state)
    assert torch.equal(low.body.weight, net.body.weight.bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["param_groups"].pop(), r"groups of \[1, 3\] tensors, found \[1\]"),
        (lambda s: s["state"][0].pop("scores"), "masked in one, not in the other"),
        (lambda s: s["state"][1].update(scores=torch.zeros(16)), "masked in one, not in the other"),
        (lambda s: s["state"][0].pop("base"), "scores without base weights"),
        (lambda s: s["state"][0].update(base=torch.zeros(3)), r"shape \(16, 6\), found \(3,\)"),
        (
            lambda s: s["param_groups"][0].update(scores_from="ternary rule"),
            "scores of a ternary rule",
        ),
        (lambda s: s["state"][0].update(scores=torch.zeros(3)), r"shape \(16, 6\), found \(3,\)"),
    ],
)
def test_state_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    net, optimizer = built()
    step(net, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    change(state)
    other, loading = built()
    step(other, loading, seed=1)
    before = copy.deepcopy((other.state_dict(), loading.state_dict()))
    with pytest.raises(CheckpointError, match=message):
        loading.load_state_dict(state)
    assert all(torch.equal(t, before[0][n]) for n, t in other.state_dict().items())
    assert torch.equal(loading.scores(other.body.weight), before[1]["state"][0]["scores"])


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_base_weights_are_left_out_where_they_are_known_and_training_goes_on_bit_for_bit(
    old, tmp_path
):
    """A state from before, which has them or nothing in their place, is taken as well."""
    net, optimizer = held_elsewhere(seeded(Tiny))
    for seed in range(3):
        step(net, optimizer, seed)
    state = optimizer.state_dict()
    assert sorted(state["state"][0]) == ["base_sum", "exp_avg", "exp_avg_sq", "scores", "step"]
    if old:
        del state["state"][0]["base_sum"]
    torch.save({"net": net.state_dict(), "optimizer": state}, tmp_path / "state.pt")
    found = torch.load(tmp_path / "state.pt", weights_only=True)
    other, resumed = held_elsewhere(seeded(Tiny))
    base = other.body.weight.detach().clone()
    other.load_state_dict(found["net"])
    resumed.load_state_dict(found["optimizer"])
    assert torch.equal(resumed.state[other.body.weight]["base"], base)
    assert "base_sum" not in {**resumed.state[other.body.weight], **resumed.inner.state}
    for seed in range(3, 6):
        step(net, optimizer, seed)
        step(other, resumed, seed)
    assert_same(net, other)
    assert not net.body.weight.all()


@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}])
def test_fast_inner_optimizers_learn_the_same_masks_and_resume(inner, options):
    plain_net, plain = built(inner=inner, foreach=False)
    net, optimizer = built(inner=inner, **options)
    for seed in range(5):
        step(plain_net, plain, seed)
        step(net, optimizer, seed)
    torch.testing.assert_close(net.body.weight, plain_net.body.weight)
    other, resumed = built(inner=inner, **options)
    for group in resumed.param_groups:
        group["lr"] = 0.5  # the state's own counts
    other.load_state_dict(net.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    step(net, optimizer, 9)
    step(other, resumed, 9)
    assert_same(net, other)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"capturable": True}])
def test_state_saved_on_a_cpu_resumes_on_a_gpu(options):
    net, optimizer = built()
    for seed in range(3):
        step(net, optimizer, seed)
    other = seeded(Tiny).cuda()
    _, resumed = built(other, **options)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group.update(options)
    resumed.load_state_dict(state)
    other(torch.randn(8, 6, device="cuda")).sum().backward()
    resumed.step()
    assert resumed.scores(other.body.weight).is_cuda
