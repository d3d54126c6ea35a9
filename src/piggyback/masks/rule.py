"""The method in numbers: the threshold, where scores start, and how fast they move (the paper's section 3).

    scores s  --threshold-->  mask m  -->  live weight W' = W m

Torch is imported where it is used: recipes and help pages need only the options.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from piggyback.errors import InputError, check_is, check_number

if TYPE_CHECKING:
    from torch import Tensor

Form: TypeAlias = Literal["plain", "channel", "affine"]
"""What a live weight is made of besides W and m:

    plain     W' = W m                          the paper's; no coefficients
    channel   W' = a_o W m                      one scale for each output channel o, the weight's first index
    affine    W' = k0 W + k1 + k2 m + k3 W m    four numbers per weight tensor (Mancini et al. 2018)

Task files may have any; only the plain one is learned.
"""
NEVER = 1.0
"""Margin of weights that are always kept: no rate that learns anything carries a score so far."""
GradScale = Literal["none", "mean", "weight"]
"""What a score's gradient is divided by: nothing, the layer's mean |W|, or each |W|."""
InitKind = Literal["magnitude", "constant", "uniform", "mean"]
Schedule = Literal["cosine", "step", "constant"]

MARGIN = 5e-3
"""The paper's: scores from 1e-2, threshold 5e-3."""
Z = 0.7
"""The margin in standard deviations of what noise does to a score, where nothing is known of the task: see
docs/RECIPES.md."""
REACH = 3.5
"""The margins that a score moves in a run while its gradient keeps its sign, in networks with layer normalisation:
see docs/RECIPES.md."""
FAR_REACH = 9.0
"""The same for a task that is far from what the backbone knows."""
HEAD_LR = 2e-3
"""Peak rate of the classifier, and of normalisation where a task trains it."""


# -- the threshold -----------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskRule:
    """How scores ``s`` become a mask ``m``.

    ``binary``: m = 1 where s > tau, else 0. ``ternary``: m = -1 where s < 0, +1 where s > tau, else 0.
    """

    kind: Literal["binary", "ternary"] = "binary"
    threshold: float = 5e-3
    """tau, in units of the scores; the paper's value."""
    form: Form = "plain"

    def __post_init__(self) -> None:
        if self.kind not in ("binary", "ternary"):
            raise InputError(f"mask rule {self.kind!r}: expected 'binary' or 'ternary'")
        if self.form not in get_args(Form):
            raise InputError(
                f"mask form {self.form!r}: expected one of {', '.join(get_args(Form))}"
            )
        if self.form == "affine" and self.kind == "ternary":
            raise InputError(
                "mask form 'affine' with a ternary rule: expected a binary one, since its four numbers say what "
                "m = 0 and m = 1 do to a weight and nothing is left to say it of m = -1"
            )
        check_number("threshold", self.threshold, math.isfinite, "a finite number")
        if self.threshold < 0 and self.kind == "ternary":
            raise InputError(
                f"ternary threshold {self.threshold}: expected >= 0, since -1 begins below 0"
            )


def check_learnable(rule: MaskRule) -> None:
    """Raise InputError for a rule with a form: task files may have one, but none is learned any more."""
    check_is("rule", rule, MaskRule, "a MaskRule")
    if rule.form != "plain":
        raise InputError(
            f"a mask rule of form {rule.form!r}: expected 'plain'; forms can be read from task files, not learned"
        )


def mask_of(scores: Tensor, rule: MaskRule) -> Tensor:
    """Return the mask of ``scores``: bool for a binary rule, int8 in {-1, 0, 1} for a ternary one; same shape.

    >>> import torch
    >>> mask_of(torch.tensor([0.004, 0.006]), MaskRule())
    tensor([False,  True])
    >>> mask_of(torch.tensor([-0.1, 0.001, 0.006]), MaskRule("ternary"))
    tensor([-1,  0,  1], dtype=torch.int8)
    """
    above = scores > rule.threshold
    return above if rule.kind == "binary" else above.char() - (scores < 0).char()


def masked_weight(base: Tensor, mask: Tensor) -> Tensor:
    """Return the live weight W' = W m, in ``base``'s dtype, with exact zeros where m is 0.

    A product would leave -0.0, and NaN where a weight is infinite; selecting does not.

    >>> import torch
    >>> masked_weight(torch.tensor([-2.0, 3.0]), torch.tensor([False, True]))
    tensor([0., 3.])
    """
    kept = base.where(mask != 0, base.new_zeros(()))
    return (-base).where(mask < 0, kept) if mask.dtype.is_signed else kept


def coefficient_shape(form: Form, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of the coefficients of a weight of ``shape``; None where the form has none.

    >>> coefficient_shape("channel", (8, 3, 3, 3)), coefficient_shape("affine", (8, 3, 3, 3))
    ((8,), (4,))
    """
    return {"plain": None, "channel": tuple(shape[:1]), "affine": (4,)}[form]


# -- where scores start --------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreInit:
    """How a weight's scores start.

    ``magnitude``: at tau + margin_i, with margin_i proportional to max(|W_i| / rms, ``floor``) ** ``power`` and
    ``value`` - tau in the mean of the layer, whose root mean square is rms. To mask a weight out costs about
    W^2 H / 2, so large weights have to show more evidence than small ones before they go. Weights below ``keep``
    times rms carry next to nothing, masked or not, and cost bits: they are always kept.
    ``constant``: at ``value``, as the paper has it. ``uniform``: in [-``value``, ``value``]. ``mean``: at the
    layer's mean |W|.
    """

    kind: InitKind = "magnitude"
    value: float = 1e-2
    """The paper's value for ``constant``, the layer's mean for ``magnitude``, half the width for ``uniform``; unused
    for ``mean``."""
    seed: int = 0
    """For ``uniform``; the numbers depend on it and the weight's position only, so all processes draw the same."""
    power: float = 1.0
    """For ``magnitude``: how fast the margin grows with |W|."""
    floor: float = 0.5
    """For ``magnitude``: weights smaller than this fraction of the layer's RMS get the margin of a weight of that
    size."""
    keep: float = 0.2
    """For ``magnitude``: weights smaller than this fraction of the layer's RMS are always kept; 0 leaves all to the
    gradient."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(InitKind):
            kinds = ", ".join(map(repr, get_args(InitKind)))
            raise InputError(f"score init {self.kind!r}: expected one of {kinds}")
        check_number("score init: value", self.value, math.isfinite, "a finite number")
        for name in ("power", "floor", "keep"):
            number = getattr(self, name)
            good = "a number from 0 to 1000"
            check_number(f"score init: {name}", number, lambda x: 0 <= x <= 1000, good)
        whole = isinstance(self.seed, numbers.Integral)
        seeds = "an integer from 0 to 2**32 - 1"
        check_number("score init: seed", self.seed, lambda s: whole and 0 <= s < 2**32, seeds)

    def margin(self, threshold: float) -> float:
        """Return how far above ``threshold`` scores start in the mean; InputError unless that is above 0.

        >>> round(ScoreInit().margin(5e-3), 6)
        0.005
        """
        if not 0 < self.value - threshold < math.inf:
            raise InputError(
                f"score init {self.kind!r}: value {self.value} with threshold {threshold}: expected a value above "
                "the threshold, so that weights are kept until their gradients speak against it"
            )
        return self.value - threshold


def initial_scores(
    weight: Tensor, init: ScoreInit, position: int = 0, threshold: float = 5e-3
) -> Tensor:
    """Return float32 scores of ``weight``'s shape, device and layout; ``position`` tells equal-shaped weights apart.

    ``threshold`` is the mask rule's tau. A layer of zeros starts at the same margin for all.

    >>> import torch
    >>> initial_scores(torch.tensor([1.0, -3.0]), ScoreInit("mean"))
    tensor([2., 2.])
    >>> initial_scores(torch.tensor([1.0, -3.0]), ScoreInit())
    tensor([0.0077, 0.0123])
    """
    import torch

    scores = torch.empty_like(weight, dtype=torch.float32, requires_grad=False)
    if init.kind == "constant":
        return scores.fill_(init.value)
    size = weight.detach().float().abs()
    if init.kind == "mean":
        return scores.fill_(size.mean())
    if init.kind == "magnitude":
        scores.copy_(_margins(size, init, init.margin(threshold)).add_(threshold))
        if not number_of((scores > threshold).all()):
            raise InputError(
                f"score init: power {init.power}: the margins of small weights are lost in rounding, which would mask "
                "them out before the first step: expected a lower power or a higher floor"
            )
        return scores
    generator = torch.Generator().manual_seed(init.seed * 1_000_003 + position)
    drawn = torch.rand(weight.shape, generator=generator).mul_(2 * init.value).sub_(init.value)
    if hasattr(scores, "placements"):  # FSDP's: each process keeps its part of the same numbers
        from torch.distributed.tensor import distribute_tensor

        like = cast(Any, scores)
        drawn = distribute_tensor(drawn.to(like.device), like.device_mesh, like.placements)
    return scores.copy_(drawn)


def resume_from_(scores: Tensor, live: Tensor, base: Tensor, rule: MaskRule) -> None:
    """Let ``scores`` stand for the mask in ``live``, where they stand for another: mirrored at the threshold.

    Does nothing where ``live`` is not ``base`` times a mask.

    >>> import torch
    >>> scores, base = torch.tensor([0.01, 0.01]), torch.tensor([2.0, 3.0])
    >>> resume_from_(scores, torch.tensor([2.0, 0.0]), base, MaskRule()); scores
    tensor([0.0100, 0.0000])
    """
    import torch

    ternary = rule.kind == "ternary"
    dropped, turned = live == 0, (live == -base) & ternary
    other = live != masked_weight(base, mask_of(scores, rule))
    if not number_of(other.any()) or not number_of((dropped | turned | (live == base)).all()):
        return
    above = (scores - rule.threshold).abs()
    # A ternary mask is 0 between 0 and the threshold.
    below = torch.full_like(above, rule.threshold / 2) if ternary else rule.threshold - above
    kept = rule.threshold + above
    moved = torch.where(dropped, below, torch.where(turned, -above, kept))
    scores.copy_(torch.where(other, moved, scores))


def _margins(size: Tensor, init: ScoreInit, margin: float) -> Tensor:
    """The margins of weights of these sizes |W|: ``margin`` in the mean, ``NEVER`` below ``keep`` times rms."""
    import torch

    rms = math.sqrt(number_of(size.square().mean()))
    if rms == 0:  # a layer of zeros has no weight that matters more than another
        return torch.full_like(size, margin)
    relative = size / rms
    made = relative.clamp_min(init.floor).pow_(init.power)
    made = made * (margin / number_of(made.mean()))
    return torch.where(relative < init.keep, torch.full_like(made, NEVER), made)


def number_of(one: Tensor) -> float:
    """A tensor of one element as a number; of a sharded weight's, over all its shards."""
    return float(cast(Any, one).full_tensor() if hasattr(one, "full_tensor") else one)


# -- how fast scores move ------------------------------------------------------------------------
#
# Adam moves a score by about the rate a step while its gradient keeps its sign, and by a random walk where the
# gradient is noise. After T steps at rates lr f_t noise alone has spread scores by N = lr sqrt(sum f_t^2), which is
# lr sqrt(3 T / 8) for a warm-up and a cosine. Scores start at a margin above the threshold, so noise masks out the
# share Phi(-z) of the weights, z = margin / N. Signal grows with lr T, noise with lr sqrt(T): a short run needs a
# higher rate.
#
# That holds for convolutional networks. In transformers gradients keep their sign for long, and noise alone would mask
# out nothing at the best rates. There a score's way, lr sum f_t, is what is held: REACH margins.


def mask_lr(
    steps: int,
    schedule: Schedule = "cosine",
    warmup: float = 0.3,
    *,
    margin: float = MARGIN,
    z: float = Z,
    reach: float | None = None,
) -> float:
    """Return the peak learning rate of the scores for a run of ``steps`` steps of Adam.

    ``margin``: where scores start above the threshold, in the mean. ``z``: that margin in standard deviations of
    what noise does to a score in the whole run; a smaller one moves more weights. ``reach``, for transformers, instead
    of ``z``: the margins that a score moves while its gradient keeps its sign; ``REACH`` is the default there. Use the
    same ``schedule`` and ``warmup`` as in ``warmup_cosine`` or ``lr_factor``; "constant" is for a loop without a
    scheduler.

    Raises InputError for steps below 1, a warmup outside 0 to 1, and for a margin, z or reach that is not finite and
    above 0, or makes a rate that is not.

    >>> [round(mask_lr(steps), 6) for steps in (240, 1000, 5000)]
    [0.00075, 0.000367, 0.000164]
    >>> round(mask_lr(240, "constant"), 6)
    0.000461
    >>> [round(mask_lr(steps, reach=REACH), 7) for steps in (240, 1000)]
    [0.0001441, 3.46e-05]
    """
    check_steps(steps)
    check_warmup(warmup)
    for name, value in (("margin", margin), ("z", z), ("reach", 1.0 if reach is None else reach)):
        check_number(name, value, lambda v: 0 < v < math.inf, "a finite number above 0")
    factors = [lr_factor(schedule, t, steps, warmup) for t in range(steps)]
    if reach is not None:
        rate = reach * margin / math.fsum(factors)
    else:
        noise = z * math.sqrt(math.fsum(factor**2 for factor in factors))
        rate = margin / noise if noise else math.inf
    what = f"mask_lr of this margin and {'z' if reach is None else 'reach'}:"
    check_number(what, rate, lambda r: 0 < r < math.inf, "a finite number above 0")
    return rate


def check_steps(steps: object) -> None:
    """Raise InputError unless ``steps`` is a whole number from 1, Python's or NumPy's."""
    whole = isinstance(steps, numbers.Integral)
    check_number("steps", steps, lambda n: whole and n >= 1, "a whole number from 1")


def check_warmup(warmup: object) -> None:
    """Raise InputError unless ``warmup`` is a share of the steps that leaves some to go down in."""
    check_number("warmup", warmup, lambda share: 0 <= share < 1, "from 0 to below 1")


def z_for(skill: float, steps: int) -> float:
    """Return the z for a task whose classes the frozen features tell apart by ``skill``, from 0 to 1.

    ``feature_skill`` measures it. Where it is low, a run of few steps learns more with more movement, and longer ones
    learn enough with less; where it is high, movement only harms.

    >>> [round(z_for(skill, 480), 2) for skill in (0.1, 0.55, 0.66, 1.0)]
    [0.5, 0.7, 0.81, 1.0]
    >>> [round(z_for(0.3, steps), 2) for steps in (480, 650, 5000)]
    [0.5, 0.6, 0.7]
    """
    least = 0.5 + 0.2 * min(max((steps - 500) / 300, 0.0), 1.0)
    return min(max(0.15 + skill, least), 1.0)


def derived_mask_lr(
    steps: int,
    skill: float | None,
    transformer: bool,
    schedule: Schedule = "cosine",
    warmup: float = 0.3,
    margin: float = MARGIN,
) -> float:
    """Return ``mask_lr`` for a task of this ``skill`` on a convolutional network or a transformer; None: not known.

    >>> derived_mask_lr(480, None, transformer=False) == mask_lr(480)
    True
    """
    if transformer:
        reach = REACH if skill is None else reach_for(skill)
        return mask_lr(steps, schedule, warmup, margin=margin, reach=reach)
    z = Z if skill is None else z_for(skill, steps)
    return mask_lr(steps, schedule, warmup, margin=margin, z=z)


def reach_for(skill: float) -> float:
    """Return the reach for a task whose classes a transformer's frozen features tell apart by ``skill``, from 0 to 1.

    >>> [round(reach_for(skill), 2) for skill in (0.0, 0.35, 0.4, 0.45, 1.0)]
    [9.0, 9.0, 6.25, 3.5, 3.5]
    """
    return FAR_REACH + (REACH - FAR_REACH) * min(max((skill - 0.35) / 0.1, 0.0), 1.0)


def lr_factor(schedule: str, step: int, steps: int, warmup: float) -> float:
    """Return the fraction of the peak learning rate at ``step`` (from 0) of ``steps``.

    cosine: from 1/25 up to 1 over the first ``warmup`` of the steps, then down to 0, both along a half cosine.
    step: 1, and a tenth from half-way on (the paper: after epoch 15 of 30). constant: 1. A pure function of the
    step, so that a resumed run needs no scheduler state.

    >>> [round(lr_factor("cosine", step, 10, warmup=0.2), 2) for step in (0, 2, 6, 9)]
    [0.04, 1.0, 0.5, 0.04]
    >>> [lr_factor("step", step, 30, warmup=0.0) for step in (14, 15)]
    [1.0, 0.1]
    """
    if schedule not in get_args(Schedule):
        raise InputError(f"schedule {schedule!r}: expected one of {', '.join(get_args(Schedule))}")
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if step < steps / 2 else 0.1
    rising = warmup * steps
    if step < rising:
        low = 1 / 25
        return low + (1 - low) * _half_cosine(step / rising)
    return 1 - _half_cosine(min((step - rising) / max(steps - rising, 1), 1.0))


def _half_cosine(x: float) -> float:
    """From 0 at x = 0 to 1 at x = 1, flat at both ends."""
    return (1 - math.cos(math.pi * x)) / 2
