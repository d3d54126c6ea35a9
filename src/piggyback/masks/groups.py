"""Parameter groups of a ``MaskOptimizer``, which it keeps twice: with parameters, and with scores in their place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from piggyback.errors import InputError

Group = dict[str, Any]


def hand_over(groups: list[Group], others: list[Group]) -> None:
    """Give ``others`` the hyperparameters of ``groups``; each keeps its own tensors."""
    for group, other in zip(groups, others, strict=True):
        other.update({key: value for key, value in group.items() if key != "params"})


def as_groups(items: list[Any]) -> list[Group]:
    """Return parameter groups as lists with an explicit ``masked``; bare parameters are one masked group.

    Masked groups get no weight decay unless they set it themselves.
    """
    if not items:
        raise InputError(
            "MaskOptimizer got no parameters: pass parameter groups, masked ones first"
        )
    masked_group = {"params": items, "masked": True}
    groups: list[Group] = items if isinstance(items[0], dict) else [masked_group]
    made = []
    for group in groups:
        held = group["params"]
        held = [held] if isinstance(held, Tensor) else list(held)
        masked = bool(group.get("masked", False))
        decay = {"weight_decay": 0.0} if masked else {}
        made.append({**decay, **group, "params": held, "masked": masked})
        for named in held:
            param = named[1] if isinstance(named, tuple) else named
            if not param.is_floating_point():
                raise InputError(
                    f"a {tuple(param.shape)} tensor of dtype {param.dtype}: expected floating point"
                )
    return made
