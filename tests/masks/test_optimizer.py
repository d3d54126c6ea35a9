"""MaskOptimizer against a readable twin: the same method with autograd, a functional call and no tricks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from piggyback.errors import InputError
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.regularize import PullToKeep
from piggyback.masks.rule import MaskRule, ScoreInit, initial_scores, mask_of


class StraightThrough(torch.autograd.Function):
    """m = threshold(s) on the way forward; the identity on the way back."""

    @staticmethod
    def forward(ctx, scores: Tensor, rule: MaskRule) -> Tensor:
        return mask_of(scores, rule).to(scores.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


class Twin:
    """Scores as leaves, W * m in a functional call, any torch optimizer on the scores."""

    def __init__(self, net, names, inner, rule, init, lr, head_lr, **options):
        self.net, self.rule = net, rule
        self.base = {n: p.detach().clone() for n, p in net.named_parameters() if n in names}
        self.scores = {
            n: initial_scores(self.base[n], init, i).requires_grad_()
            for i, n in enumerate(names, 1)
        }
        self.head = {
            n: p.detach().clone().requires_grad_() for n, p in net.named_parameters() if "head" in n
        }
        self.optimizer = inner(
            [
                {"params": list(self.scores.values()), "lr": lr},
                {"params": list(self.head.values()), "lr": head_lr},
            ],
            **options,
        )

    def step(self, x, y):
        weights = {
            n: self.base[n] * StraightThrough.apply(s, self.rule) for n, s in self.scores.items()
        }
        loss = nn.functional.cross_entropy(
            functional_call(self.net, {**weights, **self.head}, (x,)), y
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.depth = nn.Conv2d(6, 6, 3, groups=6)
        self.fc = nn.Linear(6, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        x = self.depth(self.conv(x).relu()).relu().mean((2, 3))
        return self.head(self.fc(x).relu())


MASKED = ["conv.weight", "depth.weight", "fc.weight"]


def net_and_batches(steps):
    torch.manual_seed(0)
    net = Net()
    return net, [(torch.randn(8, 3, 6, 6), torch.randint(0, 4, (8,))) for _ in range(steps)]


def groups_of(net, lr=1e-3, head_lr=1e-2):
    masked = [net.get_parameter(n) for n in MASKED]
    return [
        {"params": masked, "masked": True, "lr": lr},
        {"params": list(net.head.parameters()), "lr": head_lr},
    ]


def train_step(net, optimizer, x, y):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize("kind", ["binary", "ternary"])
@pytest.mark.parametrize(
    "start",
    [ScoreInit(), ScoreInit("constant"), ScoreInit("uniform"), ScoreInit("mean")],
    ids=lambda i: i.kind,
)
@pytest.mark.parametrize(
    ("inner", "options"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {"weight_decay": 0.0}),
        (torch.optim.SGD, {"momentum": 0.9}),
    ],
    ids=["adam", "adamw", "sgd"],
)
def test_same_masks_as_the_autograd_twin_for_100_steps(inner, options, start, kind):
    net, batches = net_and_batches(100)
    rule = MaskRule(kind)
    lr, head_lr = (1e-3, 1e-2) if inner is not torch.optim.SGD else (0.3, 0.1)
    if start.kind == "mean":
        lr *= 20  # mean |W| is that much further from the threshold
    twin = Twin(copy.deepcopy(net), MASKED, inner, rule, start, lr, head_lr, **options)
    optimizer = MaskOptimizer(groups_of(net, lr, head_lr), inner, rule=rule, init=start, **options)
    optimizer.initialize()
    for x, y in batches:
        twin.step(x, y)
        train_step(net, optimizer, x, y)
    flips = 0
    for name in MASKED:
        scores = optimizer.scores(net.get_parameter(name))
        mask, twins = mask_of(scores, rule), mask_of(twin.scores[name], rule)
        assert torch.equal(mask, twins), name
        assert torch.equal(net.get_parameter(name), twin.base[name] * twins)
        torch.testing.assert_close(scores, twin.scores[name].detach(), rtol=1e-5, atol=1e-7)
        flips += int(
            (mask != mask_of(initial_scores(scores, start, MASKED.index(name) + 1), rule)).sum()
        )
    assert flips > 10, "the comparison says nothing when no mask ever changes"


@pytest.mark.parametrize("scale", ["mean", "weight"])
def test_gradient_scaling_divides_by_the_weights_size(scale):
    net, ((x, y),) = net_and_batches(1)
    weight = net.fc.weight
    with torch.no_grad():
        weight[0, 0] = 0.0  # must not become a division by zero
    base = weight.detach().clone()
    optimizer = MaskOptimizer(groups_of(net), torch.optim.SGD, grad_scale=scale)
    nn.functional.cross_entropy(net(x), y).backward()
    live_grad = weight.grad.clone()
    optimizer.step()
    divisors = {
        "mean": base.abs().mean(),
        "weight": base.abs(),
    }
    divisor = divisors[scale]
    wanted = torch.where(base == 0, 0.0, live_grad * base / divisor)
    torch.testing.assert_close(weight.grad, wanted)
    assert weight.isfinite().all()


def test_live_weights_are_base_weights_until_the_first_step():
    net, ((x, y),) = net_and_batches(1)
    before = net.fc.weight.detach().clone()
    optimizer = MaskOptimizer(groups_of(net), init=ScoreInit("uniform"))
    assert torch.equal(net.fc.weight, before)
    with pytest.raises(InputError, match="no scores"):
        optimizer.scores(net.fc.weight)
    train_step(net, optimizer, x, y)
    assert 0.1 < (net.fc.weight != 0).float().mean() < 0.7


def test_gradient_accumulation_is_one_step_on_the_larger_batch():
    whole, ((x, y),) = net_and_batches(1)
    parts = copy.deepcopy(whole)
    a = MaskOptimizer(groups_of(whole, lr=1.0), torch.optim.SGD)
    b = MaskOptimizer(groups_of(parts, lr=1.0), torch.optim.SGD)
    train_step(whole, a, x, y)
    for half in (slice(0, 4), slice(4, 8)):
        (nn.functional.cross_entropy(parts(x[half]), y[half]) / 2).backward()
    b.step()
    torch.testing.assert_close(a.scores(whole.fc.weight), b.scores(parts.fc.weight))


def test_clipping_bounds_the_live_gradients_before_the_step():
    net, ((x, y),) = net_and_batches(1)
    start = ScoreInit("constant")
    optimizer = MaskOptimizer(groups_of(net, lr=1.0), torch.optim.SGD, init=start)
    nn.functional.cross_entropy(net(x), y).backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    clipped = net.fc.weight.grad * net.fc.weight
    optimizer.step()
    assert norm > 1e-2
    torch.testing.assert_close(optimizer.scores(net.fc.weight), start.value - clipped.detach())
    assert (optimizer.scores(net.fc.weight) - start.value).norm() <= 1e-3


def test_gradscaler_skips_a_step_with_infinite_gradients_and_unscales_the_others():
    net, ((x, y),) = net_and_batches(1)
    plain = copy.deepcopy(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = MaskOptimizer(groups_of(net, lr=1.0), torch.optim.SGD)
    scaler.scale(nn.functional.cross_entropy(net(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    reference = MaskOptimizer(groups_of(plain, lr=1.0), torch.optim.SGD)
    train_step(plain, reference, x, y)
    torch.testing.assert_close(optimizer.scores(net.fc.weight), reference.scores(plain.fc.weight))
    before = optimizer.scores(net.fc.weight).clone()
    optimizer.zero_grad()
    scaler.scale(nn.functional.cross_entropy(net(x), y) * float("inf")).backward()
    scaler.step(optimizer)
    assert torch.equal(optimizer.scores(net.fc.weight), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_stay_float32_for_other_dtypes(dtype):
    net, _ = net_and_batches(1)
    net = net.to(dtype)
    base = net.fc.weight.detach().clone()
    optimizer = MaskOptimizer([{"params": [net.fc.weight], "masked": True}], lr=1e-2)
    for seed in range(3):
        x = torch.randn(5, 6, dtype=dtype, generator=torch.Generator().manual_seed(seed))
        net.fc(x).square().sum().backward()
        optimizer.step()
    scores = optimizer.scores(net.fc.weight)
    kept = mask_of(scores, MaskRule())
    assert scores.dtype == torch.float32
    assert net.fc.weight.dtype == dtype
    assert 0 < kept.float().mean() < 1
    assert torch.equal(net.fc.weight, torch.where(kept, base, torch.zeros_like(base)))


@pytest.mark.parametrize("whole", [False, True], ids=["model", "step"])
def test_a_compiled_model_or_step_learns_the_same_masks(whole):
    net, batches = net_and_batches(5)
    eager = copy.deepcopy(net)
    a = MaskOptimizer(groups_of(net, lr=5e-3))
    b = MaskOptimizer(groups_of(eager, lr=5e-3))
    compiled = net if whole else torch.compile(net, backend="aot_eager")
    learn = torch.compile(train_step, backend="aot_eager") if whole else train_step
    for batch in batches:
        learn(compiled, a, *batch)
        train_step(eager, b, *batch)
    for name in MASKED:
        assert torch.equal(net.get_parameter(name), eager.get_parameter(name))
    assert not net.fc.weight.all()


def test_weight_decay_of_the_inner_optimizer_leaves_scores_alone_unless_a_group_asks():
    net, _ = net_and_batches(1)
    optimizer = MaskOptimizer(groups_of(net), torch.optim.AdamW, lr=1e-3, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5]


def test_a_group_can_be_added_in_mid_training():
    net, batches = net_and_batches(2)
    optimizer = MaskOptimizer(groups_of(net)[:1], torch.optim.SGD, lr=0.1)
    train_step(net, optimizer, *batches[0])
    before = net.head.weight.detach().clone()
    optimizer.add_param_group({"params": list(net.head.parameters())})
    train_step(net, optimizer, *batches[1])
    assert not torch.equal(net.head.weight, before)


def test_regularizers_are_added_to_the_scores_gradient():
    (plain, ((x, y),)), (pulled, _) = net_and_batches(1), net_and_batches(1)
    one = MaskOptimizer(groups_of(plain), torch.optim.SGD)
    other = MaskOptimizer(groups_of(pulled), torch.optim.SGD, regularizers=[PullToKeep(0.5, 1.0)])
    for net, optimizer in ((plain, one), (pulled, other)):
        train_step(net, optimizer, x, y)
    below = one.scores(plain.fc.weight) < 1.0
    moved = (plain.fc.weight.grad - pulled.fc.weight.grad)[below]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5))


def test_sparse_gradients_are_refused_with_the_way_out():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = MaskOptimizer(table.parameters(), lr=1.0)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="sparse=False"):
        optimizer.step()
