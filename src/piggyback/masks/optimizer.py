"""The method: an optimizer that learns which weights to keep.

    forward, backward        the module as it is: its parameter is the live weight W' = W * m
         |
         v  p.grad = dL/dW'
    g_s = dL/dW' * W         straight-through: the threshold's derivative is taken as 1
         |
         v
    s  <- inner optimizer(s, g_s)
    p  <- W where s > tau, else 0

Nothing else touches the module, so any training loop works as it is.
"""

from __future__ import annotations

import inspect
import math
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from piggyback.errors import (
    CheckpointError,
    InputError,
    PiggybackWarning,
    TaskStateError,
    TrainingError,
    check_is,
    first_line,
)
from piggyback.masks.regularize import Regularizer
from piggyback.masks.rule import (
    GradScale,
    MaskRule,
    ScoreInit,
    check_learnable,
    check_steps,
    check_warmup,
    initial_scores,
    lr_factor,
    mask_of,
    masked_weight,
    number_of,
    resume_from_,
)
from piggyback.masks.switch import keep_above_

NonFinite = Literal["raise", "skip"]
Group = dict[str, Any]
_OWN = ("scores", "base", "base_sum")
"""What a state dict has of a masked weight besides the inner optimizer's state of its scores."""
_WITH_SCORES: weakref.WeakSet[MaskOptimizer] = weakref.WeakSet()
_BASES: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()
"""The base weights of each parameter that was masked: a later optimizer would take what is left for base weights."""


class MaskOptimizer(torch.optim.Optimizer):
    """Learns masks for the groups marked ``"masked": True`` and trains the other groups as they are.

    ``param_groups`` hold the real parameters, so gradient scalers, clipping and schedulers see them; the inner
    optimizer's groups hold the scores and are handed the hyperparameters at every step. Scores are float32
    whatever the weights' dtype. State is made at the first step, or by ``initialize``: until then the live weights
    are the base weights. ``step`` uses up the gradients of float32 masked weights: afterwards ``p.grad`` is dL/ds.
    Masked groups get no weight decay unless they set it themselves: decay would pull scores below the threshold.
    ``state`` has a masked weight's ``scores`` and ``base``; ``state_dict`` adds the inner state of its scores, and
    leaves base weights out that the caller holds.

    ``grad_scale`` divides dL/ds by the layer's mean |W| (``"mean"``) or by each |W| (``"weight"``: dL/dW' * sign W).
    ``base`` gives a parameter's base weight where the caller holds it already; by default it is that of an earlier
    optimizer whose masks are in the parameter, or else a clone.
    ``nonfinite`` says what a step does whose gradients are not all finite: it raises TrainingError, or changes nothing
    and is counted in ``skipped``; a mask is never made from NaN.

    The first steps look whether anything is learned at all. TrainingError names masked weights that never had a
    gradient, if that is all of them, and scores that ``inner`` does not step; a warning names some without a gradient.

    Raises InputError for a parameter that is not floating point, has sparse gradients, for an unknown option, or for
    a rule with a form.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> groups = [{"params": [net[0].weight], "masked": True, "lr": 2e-4}, {"params": net[2].parameters()}]
    >>> optimizer = MaskOptimizer(groups, torch.optim.Adam, lr=1e-3)
    >>> net(torch.randn(3, 4)).sum().backward()
    >>> optimizer.step()
    """

    ended: str = ""
    """The task in whose training this was used, once that has ended: its scores are no other task's."""
    outdated: bool = False
    """Whether another optimizer has taken over weights that this one has scores of."""
    _eager_step: ClassVar[Any] = None
    """``_step``, which torch.compile leaves as it is: compiled, it would take counts of changes for constants."""

    def __init__(
        self,
        params: Iterable[Any],
        inner: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        *,
        rule: MaskRule | None = None,
        init: ScoreInit | None = None,
        grad_scale: GradScale = "none",
        regularizers: Sequence[Regularizer] = (),
        base: Callable[[Tensor], Tensor] | None = None,
        nonfinite: NonFinite = "raise",
        **inner_options: Any,
    ) -> None:
        if init is not None:
            check_is("init", init, ScoreInit, "a ScoreInit")
        check_is("regularizers", regularizers, (list, tuple), "a list, such as [PullToKeep(0.1)]")
        for each in regularizers:
            check_is("regularizer", each, Regularizer, "one such as PullToKeep(0.1)")
        if nonfinite not in get_args(NonFinite):
            raise InputError(f"nonfinite {nonfinite!r}: expected 'raise' or 'skip'")
        if grad_scale not in get_args(GradScale):
            raise InputError(
                f"grad_scale {grad_scale!r}: expected one of {', '.join(get_args(GradScale))}"
            )
        if not callable(inner):
            raise InputError(f"inner {inner!r:.100}: expected an optimizer's class, such as Adam")
        self.rule = rule or MaskRule()
        self.init = init or ScoreInit()
        self.grad_scale = grad_scale
        self.regularizers = tuple(regularizers)
        if self.init.kind == "magnitude":
            self.init.margin(self.rule.threshold)  # refused here, not at the first step
        self.nonfinite = nonfinite
        self.skipped = 0
        """Steps that were left out because a gradient was not finite."""
        self._base_of = base
        self._watch = _FirstSteps()
        self._turn = 0
        self._written: MutableMapping[Tensor, int] = WeakIdKeyDictionary()
        check_learnable(self.rule)
        groups = _as_groups(params)
        self._built = False
        self.inner = _made(inner, groups, inner_options)
        self._keep_eager()
        # The inner optimizer has filled in each group's options; these groups are the user's view of them.
        super().__init__([dict(group) for group in self.inner.param_groups], self.inner.defaults)
        self._built = True

    def __repr__(self) -> str:
        masked = self._masked()
        rates = ", ".join(f"{group['lr']:g}" for group in self.param_groups if "lr" in group)
        return (
            f"MaskOptimizer({type(self.inner).__name__}, {len(masked)} masked weights of "
            f"{sum(map(Tensor.numel, masked)):,} numbers, lr {rates})"
        )

    def scores(self, param: Tensor) -> Tensor:
        """Return the scores of a masked weight: float32, its shape; raises InputError before they exist."""
        state = self.state.get(param, {})
        if "scores" not in state:
            raise InputError(
                f"no scores for this {tuple(param.shape)} tensor: it is not in a masked group, "
                "or no step was made; call initialize() first"
            )
        return cast(Tensor, state["scores"])

    @torch.no_grad()
    def initialize(self) -> None:
        """Make scores and base weights now and apply the first masks, instead of at the first step.

        Weights that are masked already, by an earlier optimizer of the same task, stay so: their scores start as far
        below the threshold as they would have started above. With a uniform init the first masks drop half of the
        weights: call it before the first forward pass.
        """
        position = 0
        for slots, index, param, masked in self._places():
            position += masked
            if masked and "scores" not in self.state.get(param, {}):
                base = self._base_of(param) if self._base_of else _base_behind(param)
                scores = initial_scores(base, self.init, position, self.rule.threshold)
                if number_of((param != base).any()):
                    resume_from_(scores, param, base, self.rule)
                slots[index] = scores
                self._take(param, scores, base)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step scores and ordinary parameters, then write the new live weights; returns the closure's loss."""
        return cast(float | None, self._eager_step(closure))

    @staticmethod
    def _keep_eager() -> None:
        # Not at import: it loads torch's compiler, as making torch's own optimizers does.
        if MaskOptimizer._eager_step is None:
            MaskOptimizer._eager_step = cast(Any, torch.compiler).disable(MaskOptimizer._step)

    def _step(self, closure: Callable[[], float] | None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        masked = [p for p in self._masked() if p.grad is not None]
        if self.ended and masked:
            raise TaskStateError(
                f"this optimizer holds the scores of task {self.ended!r}, whose training has ended: make one of "
                "model.optimizer(...) for each task, after start_task()"
            )
        if self.outdated and masked:
            raise TaskStateError(
                "another MaskOptimizer has masked the same weights since, and this one's step would undo its masks: "
                "use one optimizer for them, or load_state_dict() to go on with this one's"
            )
        self.initialize()
        with torch.no_grad():
            _hand_over(self.param_groups, self.inner.param_groups)
            if not self._all_finite():
                self.skipped += 1
                return loss
            for param in masked:
                self._follow(param)
            self._to_score_gradients_(masked)
            self._watch.before(self)
            self.inner.step()
            self._watch.after(self)
            # What is not finite stays so: a look at every fourth step takes a quarter of the time.
            if self._turn == 0:
                self.check_scores()
            self._turn = (self._turn + 1) % 4
            for param in masked:
                self.state[param]["scores"].grad = None
                self._write_live(param)
            torch.clear_autocast_cache()  # for loops that keep one autocast open over many steps
            _hand_over(self.inner.param_groups, self.param_groups)  # some keep counters there
            self._show_ordinary_state()
        return loss

    def _all_finite(self) -> bool:
        """Whether this step can be learned from; raises TrainingError where it cannot and is not to be skipped."""
        for group in self.param_groups:
            if not math.isfinite(float(group.get("lr", 0.0))):
                raise TrainingError(f"learning rate {group['lr']}: expected a finite number")
        wrong = self._not_finite(lambda param: param.grad)
        if not wrong or self.nonfinite == "skip":
            return not wrong
        raise TrainingError(
            f"{len(wrong)} gradients are not finite, the first that of {wrong[0]}: nothing was changed; lower the "
            "rate, clip, or skip such steps with nonfinite='skip'"
        )

    def check_scores(self) -> None:
        """Raise TrainingError where the inner optimizer made scores that are not finite: they mean no mask."""
        if wrong := self._not_finite(lambda param: self.state.get(param, {}).get("scores")):
            raise TrainingError(
                f"{type(self.inner).__name__} made scores of {wrong[0]} that are not finite, from gradients that were: "
                "look at its eps, weight decay and rate; the masks are spoiled: start the task anew"
            )

    def _not_finite(self, tensor_of: Callable[[Tensor], Tensor | None]) -> list[str]:
        """The names of the parameters of which a tensor, if there is one, is not finite."""
        found = [(name, t) for name, p in self.named() if (t := tensor_of(p)) is not None]
        if _finite([tensor for _, tensor in found]):
            return []
        return [name for name, tensor in found if not tensor.isfinite().all()]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter with its name, or its place and shape where its group has no names."""
        for at, group in enumerate(self.param_groups):
            params = group["params"]
            names = group.get("names") or [
                f"tensor {i} of group {at}, {tuple(p.shape)}" for i, p in enumerate(params)
            ]
            yield from zip(names, params, strict=True)

    def state_dict(self) -> dict[str, Any]:
        """Return torch's layout; a masked weight's entry has ``scores``, their inner state, and ``base``.

        With ``base=`` it has ``base_sum`` instead, by which ``load_state_dict`` knows the base weights again: they are
        the caller's, and a checkpoint need not hold them twice. Masked groups also have the rule and the start that
        the scores were made by.
        """
        own = self.state
        self.state = defaultdict(dict)
        for slots, index, param, masked in self._places():
            if entry := {**own.get(param, {}), **self.inner.state.get(slots[index], {})}:
                if masked and self._base_of and "base" in entry:
                    entry["base_sum"] = sum_of_bits(entry.pop("base"))
                self.state[param] = entry
        try:
            made = super().state_dict()
        finally:
            self.state = own
        for group in made["param_groups"]:
            if group["masked"]:
                group["scores_from"] = self._scores_from()
        return made

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a ``state_dict`` and write the live weights that its scores and base weights give.

        Raises CheckpointError, before anything is changed, when groups, shapes, kinds, base weights, or rule and start
        of the scores do not fit.
        """
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= {*state_dict}:
            raise CheckpointError(
                f"optimizer state {state_dict!r:.60}: expected what state_dict() returned, with 'state' and "
                "'param_groups'"
            )
        saved = [dict(group) for group in state_dict["param_groups"]]
        for group in saved:
            before, now = group.pop("scores_from", None), self._scores_from()
            if before not in (None, now):  # older states do not say
                raise CheckpointError(
                    f"optimizer state: scores of a {before}: expected a {now}; make the optimizer with the rule and "
                    "init that it had"
                )
        expected, found = ([len(g["params"]) for g in gs] for gs in (self.param_groups, saved))
        if expected != found:
            raise CheckpointError(
                f"optimizer state: expected parameter groups of {expected} tensors, found {found}"
            )
        keys = [key for group in saved for key in group["params"]]
        entries = [state_dict["state"].get(key, {}) for key in keys]
        places = list(self._places())
        bases = [
            self._loaded_base(f"optimizer state of tensor {i}", param, masked, entry)
            for i, ((_, _, param, masked), entry) in enumerate(zip(places, entries, strict=True))
        ]
        # All that can fail has been done: from here on the state changes.
        self.state.clear()
        self.outdated = False
        inner = {}
        for key, (slots, index, param, _), entry, base in zip(
            keys, places, entries, bases, strict=True
        ):
            slots[index] = param
            if base is not None:
                slots[index] = entry["scores"].to(param.device, torch.float32, copy=True)
                self._take(param, slots[index], base)
            if others := {k: v for k, v in entry.items() if k not in _OWN}:
                inner[key] = {
                    k: v.clone() if isinstance(v, Tensor) else v for k, v in others.items()
                }
        _hand_over(saved, self.param_groups)
        options = [
            {**g, "params": s["params"]} for g, s in zip(self.param_groups, saved, strict=True)
        ]
        self.inner.load_state_dict({"state": inner, "param_groups": options})
        self._show_ordinary_state()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, masked or not, also in mid-training; ``masked`` defaults to False."""
        check_is("param_group", param_group, dict, "a group of parameters")
        (group,) = _as_groups([param_group])
        super().add_param_group(group)
        if self._built:
            self.inner.add_param_group(dict(self.param_groups[-1]))

    def __getstate__(self) -> dict[str, Any]:
        # What torch's own keeps, and what only this class has; never what others patched onto the instance.
        own = (
            "_base_of", "inner", "rule", "init", "grad_scale", "regularizers", "nonfinite", "skipped", "_watch",
            "_turn", "_built", "ended", "outdated",
        )  # fmt: skip
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._keep_eager()
        self._written = WeakIdKeyDictionary()
        if any("scores" in entry for entry in self.state.values()):
            _WITH_SCORES.add(self)

    def _places(self) -> Iterator[tuple[list[Tensor], int, Tensor, bool]]:
        """Each parameter's place: the inner optimizer's list and the index there, the parameter, is it masked."""
        for group, inner_group in zip(self.param_groups, self.inner.param_groups, strict=True):
            for index, param in enumerate(group["params"]):
                yield inner_group["params"], index, param, group["masked"]

    def _scores_from(self) -> str:
        """By what scores become a mask, and where they start."""
        rule, init = self.rule, self.init
        return f"{rule.kind} rule with threshold {rule.threshold:g} and {init.kind} start at {init.value:g}"

    def _masked(self) -> list[Tensor]:
        return [p for group in self.param_groups if group["masked"] for p in group["params"]]

    def _show_ordinary_state(self) -> None:
        """Let ``state`` have the inner state of ordinary parameters: tools look there for whether a step was made."""
        for _, _, param, masked in self._places():
            if not masked and param in self.inner.state:
                self.state[param] = self.inner.state[param]

    def _take(self, param: Tensor, scores: Tensor, base: Tensor) -> None:
        """Mask a weight by ``scores`` from here on, in place of any other optimizer."""
        for other in optimizers_of([param]):
            other.outdated |= other is not self
        self.state[param] = {"scores": scores, "base": base}
        _BASES[param] = base
        self._write_live(param)
        _WITH_SCORES.add(self)

    def _follow(self, param: Tensor) -> None:
        """Move scores to the mask that others wrote into a weight, such as that of the best epoch.

        Torch counts writes into plain tensors alone.
        """
        if type(param.data) is Tensor and self._written.get(param) != param._version:
            state = self.state[param]
            resume_from_(state["scores"], param, state["base"], self.rule)

    def _write_live(self, param: Tensor) -> None:
        scores, base = self.state[param]["scores"], self.state[param]["base"]
        plain = type(param.data) is Tensor and param.dtype == scores.dtype
        if plain and self.rule.kind == "binary":
            keep_above_(param, base, scores, self.rule.threshold)
        else:
            param.copy_(masked_weight(base, mask_of(scores, self.rule)))
        self._written[param] = param._version

    def _loaded_base(
        self, what: str, param: Tensor, masked: bool, entry: Mapping[str, Any]
    ) -> Tensor | None:
        """The base weight that goes with a loaded entry's scores; None for an entry without scores.

        Raises CheckpointError where kind, shapes or base weights are not those of ``param``.
        """
        scores, saved = entry.get("scores"), entry.get("base")
        if entry and (scores is not None) != masked:
            raise CheckpointError(f"{what}: masked in one, not in the other")
        if scores is None:
            return None
        if saved is None and self._base_of is None:
            raise CheckpointError(f"{what}: scores without base weights; build it with base=")
        for tensor in (scores, scores if saved is None else saved):
            if tensor.shape != param.shape:
                raise CheckpointError(
                    f"{what}: expected shape {tuple(param.shape)}, found {tuple(tensor.shape)}"
                )
        if self._base_of is None:
            return cast(Tensor, saved).to(param.device, param.dtype, copy=True)
        base = self._base_of(param)
        number = entry.get("base_sum")
        if number is not None:
            other = int(number) != int(sum_of_bits(base))
        else:
            other = saved is not None and not torch.equal(saved.to(base), base)
        if other:
            raise CheckpointError(
                f"{what}: its base weights are not this backbone's; load the backbone it was saved with"
            )
        return base

    def _to_score_gradients_(self, masked: Sequence[Tensor]) -> None:
        """Turn each p.grad (dL/dW') into dL/ds, in place where the dtype allows, and give it to the scores."""
        for param in masked:
            if cast(Tensor, param.grad).is_sparse:
                raise InputError(
                    f"sparse gradient of a {tuple(param.shape)} masked weight: expected a dense one; "
                    "build the embedding with sparse=False"
                )
        for param in masked:
            state = self.state[param]
            base, scores = state["base"], state["scores"]
            grad = cast(Tensor, param.grad).float()
            grad.mul_(base.sign() if self.grad_scale == "weight" else base)
            if self.grad_scale == "mean":
                grad.div_(base.float().abs().mean().clamp_min(torch.finfo(torch.float32).tiny))
            for regularizer in self.regularizers:
                regularizer.add_(grad, scores, self.rule)
            scores.grad = grad


def optimizers_of(params: Iterable[Tensor]) -> list[MaskOptimizer]:
    """Return the optimizers in use that hold scores of any of ``params``, but for those that have ended."""
    wanted = set(map(id, params))
    return [
        optimizer
        for optimizer in _WITH_SCORES
        if not optimizer.ended and any(id(param) in wanted for param in optimizer.state)
    ]


def note_base(param: Tensor, base: Tensor | None) -> None:
    """Let later optimizers know the base weights behind a parameter, or forget them."""
    _BASES.pop(param, None)
    if base is not None:
        _BASES[param] = base


def _base_behind(param: Tensor) -> Tensor:
    """What an earlier optimizer's masks were put on, if they are what is in the parameter; else a copy of it."""
    base = _BASES.get(param)
    if base is not None and base.shape == param.shape:
        base = base.to(param.device, param.dtype)
        if number_of(((param == base) | (param == 0) | (param == -base)).all()):
            return base
    return param.detach().clone()


def warmup_cosine(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float = 0.3
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a scheduler that warms all of an optimizer's rates up and brings them to 0 over ``steps`` steps.

    Call its ``step()`` after each of the optimizer's.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> warmup_cosine(optimizer, steps=10).get_last_lr()
    [0.04]
    """
    check_is(
        "optimizer", optimizer, torch.optim.Optimizer, "an optimizer, such as model.optimizer(...)"
    )
    check_steps(steps)
    check_warmup(warmup)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor("cosine", step, steps, warmup)
    )


def sum_of_bits(weight: Tensor) -> Tensor:
    """Return the sum, int64 (), of ``weight``'s values as bfloat16, their bits read as integers.

    It is exact, so the same on every device, and for float32 weights and what ``bfloat16()`` makes of them.

    >>> sum_of_bits(torch.tensor([1.0, 0.0])) == sum_of_bits(torch.tensor([0.0, 2.0]))
    tensor(False)
    """
    return weight.detach().bfloat16().view(torch.int16).sum(dtype=torch.int64)


def _finite(tensors: list[Tensor]) -> bool:
    """Whether all are finite; by norms, since these take no memory."""
    # The 2-norm takes a twentieth of the time of the largest magnitude, but may overflow where all is finite.
    return not tensors or any(
        math.isfinite(number_of(nn.utils.get_total_norm(tensors, order))) for order in (2, math.inf)
    )


class _FirstSteps:
    """Looks, while an optimizer makes its first steps, whether they can teach the masks anything.

    Steps in which no masked weight requires a gradient do not count: a head may be warmed up before the masks.
    """

    STEPS = 3
    """After which a weight without a gradient is taken to have none, and scores that stand still to be left alone."""
    LEAST_RATE = 1e-6
    """Slower steps, of a warmup's beginning, may be lost in rounding."""

    def __init__(self) -> None:
        self._steps = self._counted = 0
        self._with_gradient: set[str] = set()
        self._moved: set[str] = set()
        self._asked: set[str] = set()
        self._before: dict[str, tuple[int, float]] = {}

    def before(self, optimizer: MaskOptimizer) -> None:
        """Note, before the inner step, which scores have a gradient and where they are."""
        if self._counted >= self.STEPS:
            return
        self._before = {}
        for name, param in _named_masked(optimizer):
            if param.requires_grad:
                self._asked.add(name)
            if (grad := optimizer.scores(param).grad) is not None:
                self._with_gradient.add(name)
                if bool((grad != 0).any()):
                    self._before[name] = _state_of(optimizer.scores(param))

    def after(self, optimizer: MaskOptimizer) -> None:
        """Raise TrainingError where nothing is learned, warn where some weights learn nothing."""
        if self._counted >= self.STEPS or not self._asked:
            return
        self._steps += 1
        rates = [
            float(group["lr"])
            for group in optimizer.param_groups
            if group["masked"] and "lr" in group
        ]
        self._counted += not rates or max(rates) >= self.LEAST_RATE
        named = dict(_named_masked(optimizer))
        self._moved |= {
            n for n, was in self._before.items() if _state_of(optimizer.scores(named[n])) != was
        }
        if self._counted < self.STEPS:
            return
        named = {name: param for name, param in named.items() if name in self._asked}
        idle = [name for name in named if name not in self._with_gradient]
        still = [
            name for name in self._with_gradient if name in self._before and name not in self._moved
        ]
        if len(idle) == len(named):
            raise TrainingError(
                f"none of the {len(named)} masked weights had a gradient in {self._steps} steps ({_listed(idle)}): "
                "look for no_grad or detach() before the loss, and use use_reentrant=False for checkpointing"
            )
        if still and not self._moved:
            raise TrainingError(
                f"{type(optimizer.inner).__name__} does not step the scores of the masks ({_listed(still)}): expected "
                "an optimizer that steps what its param_groups hold at that moment"
            )
        for names, what in ((idle, "had no gradient"), (still, "were not stepped")):
            if names:
                warnings.warn(
                    f"{len(names)} of {len(named)} masked weights {what} in the first {self._steps} steps and are not "
                    f"learned unless later ones use them: {_listed(names)}",
                    PiggybackWarning,
                    stacklevel=4,
                )


def _named_masked(optimizer: MaskOptimizer) -> Iterator[tuple[str, Tensor]]:
    """The masked parameters by name."""
    masked = set(map(id, optimizer._masked()))
    return ((name, param) for name, param in optimizer.named() if id(param) in masked)


def _state_of(scores: Tensor) -> tuple[int, float]:
    """What a step changes: torch's count of changes, which ``.data`` passes by, or the sum of all scores."""
    return scores._version, number_of(scores.detach().sum(dtype=torch.float64))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _hand_over(groups: list[Group], others: list[Group]) -> None:
    """Give ``others`` the hyperparameters of ``groups``; each keeps its own tensors."""
    for group, other in zip(groups, others, strict=True):
        other.update({key: value for key, value in group.items() if key != "params"})


def _made(
    inner: Callable[..., torch.optim.Optimizer], groups: list[Group], options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """The inner optimizer of ``groups``; raises InputError for one that takes no such groups, or steps otherwise."""
    name = getattr(inner, "__name__", type(inner).__name__)
    try:
        made = inner([dict(group) for group in groups], **options)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"inner {name} cannot be made ({first_line(error)}): expected an optimizer, such as Adam or SGD, that "
            "takes all these weights, and its own options"
        ) from error
    check_is("inner's result", made, torch.optim.Optimizer, "an optimizer")
    if isinstance(made, torch.optim.SparseAdam):
        raise InputError("inner SparseAdam takes sparse gradients alone: expected Adam or SGD")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise InputError(
            f"{type(made).__name__} evaluates the loss itself: expected an optimizer that steps by gradients "
            "alone, such as Adam or SGD"
        )
    return made


def _as_groups(params: Any) -> list[Group]:
    """Return parameter groups as lists with an explicit ``masked``; bare parameters are one masked group.

    Masked groups get no weight decay unless they set it themselves.
    """
    items = list(params) if isinstance(params, Iterable) else [params]
    if not items:
        raise InputError("params: no parameters: expected groups of them, masked ones first")
    masked_group = {"params": items, "masked": True}
    groups: list[Group] = items if isinstance(items[0], dict) else [masked_group]
    made = []
    for group in groups:
        held = group.get("params")
        held = list(held) if isinstance(held, Iterable) and not isinstance(held, Tensor) else [held]
        masked = bool(group.get("masked", False))
        decay = {"weight_decay": 0.0} if masked else {}
        made.append({**decay, **group, "params": held, "masked": masked})
        for named in held:
            param = named[1] if isinstance(named, tuple) else named
            check_is("parameter", param, Tensor, "a tensor, or groups of them")
            if not param.is_floating_point():
                raise InputError(
                    f"a {tuple(param.shape)} tensor of dtype {param.dtype}: expected floating point"
                )
    return made
