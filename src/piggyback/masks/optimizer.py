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

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from piggyback.errors import CheckpointError, InputError
from piggyback.masks.forms import coefficient_gradient, formed_weight, mask_slope
from piggyback.masks.groups import Group, as_groups, hand_over
from piggyback.masks.init import ScoreInit, initial_scores
from piggyback.masks.regularize import Regularizer
from piggyback.masks.rule import MaskRule, keep_above_, mask_of, masked_weight
from piggyback.masks.saved import checked_base, placed

GradScale = Literal["none", "mean", "weight"]
_OWN = ("scores", "base", "coefficients")
"""What ``state`` has of a masked weight besides the inner optimizer's state of its scores."""


class MaskOptimizer(torch.optim.Optimizer):
    """Learns masks for the groups marked ``"masked": True`` and trains the other groups as they are.

    ``param_groups`` hold the real parameters, so gradient scalers, clipping and schedulers see them; the inner
    optimizer's groups hold the scores and are handed the hyperparameters at every step. Scores are float32
    whatever the weights' dtype. State is made at the first step, or by ``initialize``: until then the live weights
    are the base weights. ``step`` uses up the gradients of float32 masked weights: afterwards ``p.grad`` is dL/ds.
    Masked groups get no weight decay unless they set it themselves: decay would pull scores below the threshold.
    ``state`` has a masked weight's ``scores``, ``base`` and ``coefficients``, if the rule's form has any;
    ``state_dict`` adds the inner state of its scores.

    ``grad_scale`` divides dL/ds by the layer's mean |W| (``"mean"``) or by each |W| (``"weight"``: dL/dW' * sign W).
    ``base`` gives a parameter's base weight where the caller holds it already; by default it is cloned.

    A rule with another form than plain (see ``forms.py``) needs ``coefficients``, which gives a masked weight's. They
    belong into an ordinary group: ``step`` fills in their gradients. ``MultiTaskModel.optimizer`` sees to both.

    Raises InputError for a parameter that is not floating point, has sparse gradients, or for an unknown option.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> groups = [{"params": [net[0].weight], "masked": True, "lr": 2e-4}, {"params": net[2].parameters()}]
    >>> optimizer = MaskOptimizer(groups, torch.optim.Adam, lr=1e-3)
    >>> net(torch.randn(3, 4)).sum().backward()
    >>> optimizer.step()
    """

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
        coefficients: Callable[[Tensor], Tensor] | None = None,
        **inner_options: Any,
    ) -> None:
        if grad_scale not in get_args(GradScale):
            raise InputError(
                f"grad_scale {grad_scale!r}: expected one of {', '.join(get_args(GradScale))}"
            )
        self.rule = rule or MaskRule()
        self.init = init or ScoreInit()
        self.grad_scale = grad_scale
        self.regularizers = tuple(regularizers)
        if self.init.kind == "magnitude":
            self.init.margin(self.rule.threshold)  # refused here, not at the first step
        self._base_of = base
        self._coefficients_of = None if self.rule.form == "plain" else coefficients
        self._check_form()
        groups = as_groups(list(params))
        self._built = False
        self.inner = inner([dict(group) for group in groups], **inner_options)
        # The inner optimizer has filled in each group's options; these groups are the user's view of them.
        super().__init__([dict(group) for group in self.inner.param_groups], self.inner.defaults)
        self._built = True

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

        With a uniform init the first masks drop half of the weights: call it before the first forward pass.
        """
        position = 0
        for slots, index, param, masked in self._places():
            position += masked
            if masked and "scores" not in self.state.get(param, {}):
                base = self._base_of(param) if self._base_of else param.detach().clone()
                scores = initial_scores(base, self.init, position, self.rule.threshold)
                self.state[param] = self._new_state(param, scores, base)
                slots[index] = scores
                self._write_live(param)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step scores and ordinary parameters, then write the new live weights; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.initialize()
        with torch.no_grad():
            hand_over(self.param_groups, self.inner.param_groups)
            masked = [p for p in self._masked() if p.grad is not None]
            self._to_score_gradients_(masked)
            self.inner.step()
            for param in masked:
                self.state[param]["scores"].grad = None
                if "coefficients" in self.state[param]:
                    self.state[param]["coefficients"].grad = None
                self._write_live(param)
            hand_over(self.inner.param_groups, self.param_groups)  # some keep counters there
            self._show_ordinary_state()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return torch's layout; a masked weight's entry has ``scores``, ``base`` and its scores' inner state."""
        own = self.state
        self.state = defaultdict(dict)
        for slots, index, param, _ in self._places():
            if entry := {**own.get(param, {}), **self.inner.state.get(slots[index], {})}:
                self.state[param] = entry
        try:
            return super().state_dict()
        finally:
            self.state = own

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a ``state_dict`` and write the live weights that its scores and base weights give.

        Raises CheckpointError, before anything is changed, when groups, shapes, kinds or base weights do not fit.
        """
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        saved = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in self.param_groups]
        if sizes != [len(group["params"]) for group in saved]:
            raise CheckpointError(
                f"optimizer state: expected parameter groups of {sizes} tensors, "
                f"found {[len(group['params']) for group in saved]}"
            )
        keys = [key for group in saved for key in group["params"]]
        entries = [state_dict["state"].get(key, {}) for key in keys]
        places = list(self._places())
        bases = [
            checked_base(
                f"optimizer state of tensor {position}",
                param,
                entry,
                masked=masked,
                form=self.rule.form,
                base_of=self._base_of,
            )
            for position, ((_, _, param, masked), entry) in enumerate(
                zip(places, entries, strict=True)
            )
        ]
        hand_over(saved, self.param_groups)
        hand_over(saved, self.inner.param_groups)
        options = [group for group in saved for _ in group["params"]]
        for (slots, index, param, _), entry, base, group in zip(
            places, entries, bases, options, strict=True
        ):
            self.state.pop(param, None)
            self.inner.state.pop(slots[index], None)
            slots[index] = param
            if base is not None:
                slots[index] = entry["scores"].to(param.device, torch.float32, copy=True)
                self.state[param] = self._new_state(param, slots[index], base)
                if "coefficients" in entry:
                    self.state[param]["coefficients"].copy_(entry["coefficients"])
                self._write_live(param)
            inner = {k: v for k, v in entry.items() if k not in _OWN}
            if inner:
                self.inner.state[slots[index]] = {
                    k: placed(k, v, slots[index], group) for k, v in inner.items()
                }
        self._show_ordinary_state()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, masked or not, also in mid-training; ``masked`` defaults to False."""
        (group,) = as_groups([param_group])
        super().add_param_group(group)
        if self._built:
            self.inner.add_param_group(dict(self.param_groups[-1]))

    def __getstate__(self) -> dict[str, Any]:
        # What torch's own keeps, and what only this class has; never what others patched onto the instance.
        asked = ("_base_of", "_coefficients_of")
        own = (*asked, "inner", "rule", "init", "grad_scale", "regularizers", "_built")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def _places(self) -> Iterator[tuple[list[Tensor], int, Tensor, bool]]:
        """Each parameter's place: the inner optimizer's list and the index there, the parameter, is it masked."""
        for group, inner_group in zip(self.param_groups, self.inner.param_groups, strict=True):
            for index, param in enumerate(group["params"]):
                yield inner_group["params"], index, param, group["masked"]

    def _masked(self) -> list[Tensor]:
        return [p for group in self.param_groups if group["masked"] for p in group["params"]]

    def _show_ordinary_state(self) -> None:
        """Let ``state`` have the inner state of ordinary parameters: tools look there for whether a step was made."""
        for _, _, param, masked in self._places():
            if not masked and param in self.inner.state:
                self.state[param] = self.inner.state[param]

    def _write_live(self, param: Tensor) -> None:
        scores, base = self.state[param]["scores"], self.state[param]["base"]
        plain = type(param.data) is Tensor and param.dtype == scores.dtype
        if "coefficients" in self.state[param]:
            coefficients, mask = self.state[param]["coefficients"], mask_of(scores, self.rule)
            # A model moved since has its base weights in the new dtype, and capture computes from these.
            param.copy_(formed_weight(base.to(param), mask, coefficients, self.rule.form))
        elif plain and self.rule.kind == "binary":
            keep_above_(param, base, scores, self.rule.threshold)
        else:
            param.copy_(masked_weight(base, mask_of(scores, self.rule)))

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
            weight = base.sign() if self.grad_scale == "weight" else base
            if (coefficients := state.get("coefficients")) is not None:
                mask = mask_of(scores, self.rule)
                coefficients.grad = coefficient_gradient(grad, base, mask, self.rule.form)
                weight = mask_slope(weight, coefficients, self.rule.form)
            grad.mul_(weight)
            if self.grad_scale == "mean":
                grad.div_(base.float().abs().mean().clamp_min(torch.finfo(torch.float32).tiny))
            for regularizer in self.regularizers:
                regularizer.add_(grad, scores, self.rule)
            scores.grad = grad

    def _check_form(self) -> None:
        """Raise InputError where the rule's form cannot be learned with these options."""
        form = self.rule.form
        if form != "plain" and self._coefficients_of is None:
            raise InputError(
                f"a rule of form {form!r} without coefficients: expected coefficients=model.coefficients_of; "
                "or make the optimizer with model.optimizer()"
            )
        if form == "affine" and self.grad_scale == "weight":
            raise InputError(
                "grad_scale 'weight' with form 'affine': expected none or mean, since dW'/dm = k2 + k3 W does not "
                "fall with W and has no bound when divided by it"
            )

    def _new_state(self, param: Tensor, scores: Tensor, base: Tensor) -> dict[str, Tensor]:
        """A masked weight's entry in ``state``; its coefficients are the very tensor that the caller holds."""
        state = {"scores": scores, "base": base}
        if self._coefficients_of is not None:
            if type(param.data) is not Tensor:
                raise InputError(
                    f"a {tuple(param.shape)} weight held as {type(param.data).__name__} with form "
                    f"{self.rule.form!r}: expected a whole tensor; use form 'plain', or do not shard it"
                )
            state["coefficients"] = self._coefficients_of(param)
        return state
