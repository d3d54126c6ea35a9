"""Mask forms against a readable twin: the formula in a functional call, coefficients as leaves, and autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nets import Convolutions, assert_same_state, same_bits, seeded, state_of
from piggyback.errors import CheckpointError, InputError, TaskStateError
from piggyback.masks.forms import coefficient_shape, formed_weight, initial_coefficients
from piggyback.masks.init import ScoreInit, initial_scores
from piggyback.masks.live import LiveWeights
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.packing import pack, unpack
from piggyback.masks.rule import MaskRule, mask_of

RULES = [MaskRule(form="channel"), MaskRule("ternary", form="channel"), MaskRule(form="affine")]
MASKED = [
    "stem.0.weight",
    "body.grouped.weight",
    "body.depthwise.weight",
    "body.up.weight",
    "neck.weight",
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.form}-{r.kind}")


class StraightThrough(torch.autograd.Function):
    """m = threshold(s) on the way forward; the identity on the way back."""

    @staticmethod
    def forward(ctx, scores: Tensor, rule: MaskRule) -> Tensor:
        return mask_of(scores, rule).to(scores.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


def twin_weight(base: Tensor, scores: Tensor, k: Tensor, rule: MaskRule) -> Tensor:
    """The formula, as the paper writes it."""
    m = StraightThrough.apply(scores, rule)
    if rule.form == "channel":
        return torch.einsum("o,o...->o...", k, base * m)
    return k[0] * base + k[1] * torch.ones_like(base) + k[2] * m + k[3] * (base * m)


class Twin:
    """Scores, coefficients and head as leaves of one ordinary optimizer."""

    def __init__(self, net, rule, init, lr, form_lr, head_lr):
        self.net, self.rule = net, rule
        self.base = {n: net.get_parameter(n).detach().clone() for n in MASKED}
        self.scores = {n: initial_scores(self.base[n], init, i) for i, n in enumerate(MASKED, 1)}
        self.numbers = {n: initial_coefficients(rule.form, self.base[n]) for n in MASKED}
        self.head = {n: p.detach().clone() for n, p in net.named_parameters() if n[:2] == "fc"}
        parts = [(self.scores, lr), (self.numbers, form_lr), (self.head, head_lr)]
        groups = [{"params": list(p.values()), "lr": rate} for p, rate in parts]
        for group in groups:
            for leaf in group["params"]:
                leaf.requires_grad_()
        self.optimizer = torch.optim.Adam(groups)

    def weights(self):
        return {
            n: twin_weight(self.base[n], self.scores[n], self.numbers[n], self.rule) for n in MASKED
        }

    def step(self, x, y):
        out = functional_call(self.net, {**self.weights(), **self.head}, (x,))
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(out, y).backward()
        self.optimizer.step()


def learner(net, rule, *, lr=1e-3, form_lr=3e-3, head_lr=1e-2, **options):
    """An optimizer of all masked weights, and the coefficients it learns, by weight."""
    held = {
        net.get_parameter(n): nn.Parameter(initial_coefficients(rule.form, net.get_parameter(n)))
        for n in MASKED
    }
    groups = [
        {"params": list(held), "masked": True, "lr": lr},
        {"params": list(net.fc.parameters()), "lr": head_lr},
        {"params": list(held.values()), "lr": form_lr},
    ]
    return MaskOptimizer(groups, rule=rule, coefficients=held.__getitem__, **options), held


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 3, 8, 8, generator=generator)
    return x, torch.randint(0, 4, (8,), generator=generator)


def train_step(net, optimizer, x, y):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()


@every_rule
def test_same_masks_and_coefficients_as_the_autograd_twin_for_50_steps(rule):
    """Grouped, depthwise, transposed convolutions and a linear layer among the weights."""
    net, init = seeded(Convolutions), ScoreInit("uniform")
    twin = Twin(copy.deepcopy(net), rule, init, 1e-3, 3e-3, 1e-2)
    optimizer, held = learner(net, rule, init=init)
    optimizer.initialize()
    first = {n: mask_of(optimizer.scores(net.get_parameter(n)), rule) for n in MASKED}
    for seed in range(50):
        twin.step(*batch(seed))
        train_step(net, optimizer, *batch(seed))
    live = twin.weights()
    flips = 0
    for name in MASKED:
        param = net.get_parameter(name)
        mask = mask_of(optimizer.scores(param), rule)
        assert torch.equal(mask, mask_of(twin.scores[name], rule)), name
        close = {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(optimizer.scores(param), twin.scores[name].detach(), **close)
        torch.testing.assert_close(held[param].detach(), twin.numbers[name].detach(), **close)
        torch.testing.assert_close(param.detach(), live[name].detach(), **close)
        flips += int((mask != first[name]).sum())
    assert flips > 10, "the comparison says nothing when no mask ever changes"
    moved = [(k - initial_coefficients(rule.form, p)).abs().max() for p, k in held.items()]
    assert min(moved) > 0.01, "nor when coefficients stay"


@every_rule
def test_a_task_begins_as_the_plain_mask(rule):
    base = torch.randn(6, 4, 3, 3)
    mask = mask_of(torch.randn(6, 4, 3, 3), rule)
    numbers = initial_coefficients(rule.form, base)
    assert numbers.shape == coefficient_shape(rule.form, tuple(base.shape))
    assert torch.equal(formed_weight(base, mask, numbers, rule.form), base * mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_computed_in_float32_or_wider_and_rounded_once(dtype):
    base, mask = torch.randn(5, 7, dtype=dtype), torch.rand(5, 7) < 0.5
    k = torch.randn(4)
    made = formed_weight(base, mask, k, "affine")
    wide = torch.promote_types(dtype, torch.float32)
    w, m, k = base.to(wide), mask.to(wide), k.to(wide)
    assert made.dtype == dtype
    assert torch.equal(made, (((w * k[0] + k[1]) + m * k[2]) + (w * m) * k[3]).to(dtype))


@pytest.mark.parametrize(("scale", "divide"), [("mean", True), ("weight", False)])
def test_gradient_scaling_divides_what_comes_through_a_scale(scale, divide):
    net, (x, y) = seeded(Convolutions), batch(0)
    rule = MaskRule(form="channel")
    param = net.neck.weight
    base = param.detach().clone()
    optimizer, held = learner(net, rule, grad_scale=scale)
    with torch.no_grad():
        held[param].mul_(-2)
    optimizer.initialize()
    nn.functional.cross_entropy(net(x), y).backward()
    grad = param.grad.clone()
    optimizer.step()
    wanted = grad * -2 * (base / base.abs().mean() if divide else base.sign())
    torch.testing.assert_close(param.grad, wanted)


@every_rule
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_written_is_captured_again(rule, layout):
    net = seeded(Convolutions).to(memory_format=layout)
    base = state_of(net)
    live = LiveWeights(net.requires_grad_(False), MASKED)
    masks = {n: pack(mask_of(torch.randn(base[n].shape), rule)) for n in MASKED}
    shapes = {n: coefficient_shape(rule.form, tuple(base[n].shape)) for n in MASKED}
    numbers = {n: torch.randn(shape) for n, shape in shapes.items()}
    live.write_(live.lay_out(masks), numbers, rule.form)
    for name in MASKED:
        wanted = formed_weight(base[name], unpack(masks[name]), numbers[name], rule.form)
        assert torch.equal(net.get_parameter(name), wanted)
    found = live.logical(live.capture(MASKED, rule, numbers))
    for name in MASKED:
        assert torch.equal(unpack(found[name]), unpack(masks[name]))
    with pytest.raises(TaskStateError, match="neither kept nor masked out"):
        live.capture(MASKED, rule, {n: k + 0.5 for n, k in numbers.items()})
    live.write_({})
    assert_same_state(net, base)


@every_rule
def test_a_state_dict_has_the_coefficients_and_continues_bit_for_bit(rule, tmp_path):
    net, other = seeded(Convolutions), seeded(Convolutions)
    optimizer, held = learner(net, rule)
    for seed in range(5):
        train_step(net, optimizer, *batch(seed))
    torch.save({"fc": net.fc.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "s.pt")
    saved = torch.load(tmp_path / "s.pt", weights_only=True)
    resumed, others = learner(other, rule)
    other.fc.load_state_dict(saved["fc"])
    resumed.load_state_dict(saved["optimizer"])
    assert_same_state(other, state_of(net))
    for seed in range(5, 10):
        train_step(net, optimizer, *batch(seed))
        train_step(other, resumed, *batch(seed))
    assert_same_state(other, state_of(net))
    for one, two in zip(held.values(), others.values(), strict=True):
        assert same_bits(one, two)
        assert one.grad is None


def test_a_state_of_another_form_is_refused_and_changes_nothing():
    net = seeded(Convolutions)
    affine, _ = learner(net, MaskRule(form="affine"))
    train_step(net, affine, *batch(0))
    other = seeded(Convolutions)
    channel, _ = learner(other, MaskRule(form="channel"))
    before = state_of(other)
    with pytest.raises(
        CheckpointError, match=r"coefficients \(8,\) of form 'channel', found \(4,\)"
    ):
        channel.load_state_dict(affine.state_dict())
    assert_same_state(other, before)
    assert not channel.state


def test_a_weight_that_is_no_whole_tensor_is_refused():
    """As FSDP's are: each process has some rows, but an affine form's numbers belong to all."""

    class Part(torch.Tensor):
        pass

    param = nn.Parameter(torch.ones(3, 2).as_subclass(Part))
    numbers = nn.Parameter(initial_coefficients("affine", param))
    optimizer = MaskOptimizer([param], rule=RULES[2], coefficients=lambda p: numbers)
    with pytest.raises(InputError, match=r"held as Part with form 'affine': expected a whole"):
        optimizer.initialize()
    assert not optimizer.state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskRule(form="rows"), "form 'rows': expected one of plain, channel, affine"),
        (
            lambda: MaskRule("ternary", form="affine"),
            "'affine' with a ternary rule: expected a bin",
        ),
        (
            lambda: MaskOptimizer([nn.Parameter(torch.ones(2))], rule=RULES[0]),
            "'channel' without coefficients: expected coefficients=model.coefficients_of",
        ),
        (
            lambda: learner(seeded(Convolutions), MaskRule(form="affine"), grad_scale="weight"),
            "'weight' with form 'affine': expected none or mean",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
