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

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from piggyback.errors import CheckpointError, InputError
from piggyback.masks.init import ScoreInit, initial_scores
from piggyback.masks.regularize import Regularizer
from piggyback.masks.rule import MaskRule, mask_of, masked_weight

GradScale = Literal["none", "mean", "weight"]
Group = dict[str, Any]


class MaskOptimizer(torch.optim.Optimizer):
    """Learns masks for the groups marked ``"masked": True`` and trains the other groups as they are.

    ``param_groups`` hold the real parameters, so gradient scalers, clipping and schedulers see them; the inner
    optimizer's groups hold the scores and are handed the hyperparameters at every step. Scores are float32
    whatever the weights' dtype. State is made at the first step, or by ``initialize``: until then the live weights
    are the base weights. ``step`` uses up the gradients of float32 masked weights: afterwards ``p.grad`` is dL/ds.
    Masked groups get no weight decay unless they set it themselves: decay would pull scores below the threshold.

    ``grad_scale`` divides dL/ds by the layer's mean |W| (``"mean"``) or by each |W| (``"weight"``: dL/dW' * sign W).
    ``base`` gives a parameter's base weight where the caller holds it already; by default it is cloned.

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
        **inner_options: Any,
    ) -> None:
        if grad_scale not in ("none", "mean", "weight"):
            raise InputError(f"grad_scale {grad_scale!r}: expected 'none', 'mean' or 'weight'")
        self.rule = rule or MaskRule()
        self.init = init or ScoreInit()
        self.grad_scale = grad_scale
        self.regularizers = tuple(regularizers)
        self._base_of = base
        groups = _as_groups(list(params))
        self._built = False
        self.inner = inner([dict(group) for group in groups], **inner_options)
        # The inner optimizer has filled in each group's options; these groups are the user's view of them.
        super().__init__([dict(group) for group in self.inner.param_groups], self.inner.defaults)
        self._built = True

    def scores(self, param: Tensor) -> Tensor:
        """Return the scores of a masked weight: float32, its shape; raises InputError before they exist."""
        state = self.state.get(param)
        if not state or "scores" not in state:
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
        for group, inner_group in zip(self.param_groups, self.inner.param_groups, strict=True):
            if not group["masked"]:
                continue
            for index, param in enumerate(group["params"]):
                position += 1
                if "scores" in self.state[param]:
                    continue
                base = self._base_of(param) if self._base_of else param.detach().clone()
                scores = initial_scores(base, self.init, position)
                self._adopt(param, scores, base)
                inner_group["params"][index] = scores
                self._write_live(param)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step scores and ordinary parameters, then write the new live weights; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.initialize()
        with torch.no_grad():
            self._hand_over_options()
            masked = [p for p in self._masked() if p.grad is not None]
            self._to_score_gradients_(masked)
            self.inner.step()
            for param in masked:
                self.state[param]["scores"].grad = None
                self._write_live(param)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return torch's layout; a masked weight's entry holds ``scores``, ``base`` and the inner state of its scores."""
        packed = super().state_dict()
        state: dict[int, Any] = {}
        index = 0
        for group in self.param_groups:
            for param in group["params"]:
                own = self.state.get(param, {})
                target = own.get("scores", param)
                merged = {**own, **self.inner.state.get(target, {})}
                if merged:
                    state[index] = merged
                index += 1
        packed["state"] = state
        return packed

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a ``state_dict`` and write the live weights that its scores and base weights give.

        Raises CheckpointError, before anything is changed, when groups, shapes or kinds do not fit.
        """
        saved = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in self.param_groups]
        if sizes != [len(group["params"]) for group in saved]:
            raise CheckpointError(
                f"optimizer state: expected parameter groups of {sizes} tensors, "
                f"found {[len(group['params']) for group in saved]}"
            )
        params = [p for group in self.param_groups for p in group["params"]]
        keys = [key for group in saved for key in group["params"]]
        masked = {id(p) for p in self._masked()}
        entries = [state_dict["state"].get(key, {}) for key in keys]
        for position, (param, entry) in enumerate(zip(params, entries, strict=True)):
            scores = entry.get("scores")
            if entry and (scores is not None) != (id(param) in masked):
                raise CheckpointError(f"optimizer state of tensor {position}: masked in one, not in the other")
            if scores is not None and scores.shape != param.shape:
                raise CheckpointError(
                    f"optimizer state of tensor {position}: expected shape {tuple(param.shape)}, "
                    f"found {tuple(scores.shape)}"
                )
        for group, other in zip(self.param_groups, saved, strict=True):
            group.update({key: value for key, value in other.items() if key != "params"})
        for param, entry in zip(params, entries, strict=True):
            self._load_entry(param, entry, id(param) in masked)
        self._hand_over_options()

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, masked or not, also in mid-training; ``masked`` defaults to False."""
        (group,) = _as_groups([param_group])
        if not self._built:
            super().add_param_group(group)
            return
        self.inner.add_param_group(dict(group))
        super().add_param_group({**self.inner.param_groups[-1], "params": group["params"]})

    def _masked(self) -> list[Tensor]:
        return [p for group in self.param_groups if group["masked"] for p in group["params"]]

    def _adopt(self, param: Tensor, scores: Tensor, base: Tensor) -> None:
        self.state[param] = {"scores": scores, "base": base}

    def _write_live(self, param: Tensor) -> None:
        state = self.state[param]
        mask, base = mask_of(state["scores"], self.rule), state["base"]
        if mask.dtype == torch.bool and type(param.data) is Tensor:
            zero = torch.zeros((), dtype=base.dtype, device=base.device)
            torch.where(mask, base, zero, out=param.data)
        else:
            param.copy_(masked_weight(base, mask))

    def _to_score_gradients_(self, masked: Sequence[Tensor]) -> None:
        """Turn each p.grad (dL/dW') into dL/ds, in place where the dtype allows, and give it to the scores."""
        for param in masked:
            grad, state = cast(Tensor, param.grad), self.state[param]
            if grad.is_sparse:
                raise InputError(
                    f"sparse gradient of a {tuple(param.shape)} masked weight: expected a dense one; "
                    "build the embedding with sparse=False"
                )
            base, scores = state["base"], state["scores"]
            grad = grad.float()
            grad.mul_(base.sign() if self.grad_scale == "weight" else base)
            if self.grad_scale == "mean":
                grad.div_(base.float().abs().mean().clamp_min(torch.finfo(torch.float32).tiny))
            for regularizer in self.regularizers:
                regularizer.add_(grad, scores, self.rule)
            scores.grad = grad

    def _hand_over_options(self) -> None:
        for group, inner_group in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner_group.update({key: value for key, value in group.items() if key != "params"})

    def _load_entry(self, param: Tensor, entry: dict[str, Any], masked: bool) -> None:
        old = self.state[param].get("scores", param) if masked else param
        self.inner.state.pop(old, None)
        target = param
        if masked and "scores" in entry:
            target = entry["scores"].to(device=param.device, dtype=torch.float32).clone()
            base = entry["base"].to(device=param.device, dtype=param.dtype).clone()
            self._adopt(param, target, base)
            self._replace_in_inner(old, target)
            self._write_live(param)
        elif masked:
            self._replace_in_inner(old, param)
            self.state.pop(param, None)
        inner = {k: v for k, v in entry.items() if k not in ("scores", "base")}
        if inner:
            self.inner.state[target] = {k: _like(target, k, v) for k, v in inner.items()}

    def _replace_in_inner(self, old: Tensor, new: Tensor) -> None:
        for group in self.inner.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]


def _as_groups(items: list[Any]) -> list[Group]:
    """Parameter groups as lists with an explicit ``masked``; bare parameters are one masked group."""
    if not items:
        raise InputError("MaskOptimizer got no parameters: pass parameter groups, masked ones first")
    groups = items if isinstance(items[0], dict) else [{"params": items, "masked": True}]
    made = []
    for group in groups:
        held = group["params"]
        held = [held] if isinstance(held, Tensor) else list(held)
        masked = bool(group.get("masked", False))
        decay = {"weight_decay": 0.0} if masked else {}
        made.append({**decay, **group, "params": held, "masked": masked})
        for param in held:
            if not param.is_floating_point():
                raise InputError(
                    f"a {tuple(param.shape)} tensor of dtype {param.dtype}: expected floating point"
                )
    return made


def _like(target: Tensor, key: str, value: Any) -> Any:
    """A loaded piece of inner state where the inner optimizer expects it: with its tensor, but for step counters."""
    if not isinstance(value, Tensor):
        return value
    if key == "step" or value.shape != target.shape:
        return value.clone()
    return value.to(device=target.device).clone(memory_format=torch.preserve_format)
