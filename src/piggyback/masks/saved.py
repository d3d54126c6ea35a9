"""A saved optimizer state: does it fit, and where does it go?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from piggyback.errors import CheckpointError
from piggyback.masks.forms import coefficient_shape
from piggyback.masks.rule import Form


def checked_base(
    what: str,
    param: Tensor,
    entry: Mapping[str, Any],
    *,
    masked: bool,
    form: Form,
    base_of: Callable[[Tensor], Tensor] | None,
) -> Tensor | None:
    """Return the base weight that goes with a loaded entry's scores; None for an entry without.

    Raises CheckpointError where kind, shapes, form or base weights are not those of ``param``.
    """
    scores = entry.get("scores")
    if entry and (scores is not None) != masked:
        raise CheckpointError(f"{what}: masked in one, not in the other")
    if scores is None:
        return None
    saved = entry.get("base")
    if saved is None and base_of is None:
        raise CheckpointError(f"{what}: scores without base weights; build it with base=")
    for tensor in (scores, *(() if saved is None else (saved,))):
        if tensor.shape != param.shape:
            raise CheckpointError(
                f"{what}: expected shape {tuple(param.shape)}, found {tuple(tensor.shape)}"
            )
    wanted = coefficient_shape(form, tuple(param.shape))
    found = tuple(entry["coefficients"].shape) if "coefficients" in entry else None
    if found != wanted:
        raise CheckpointError(
            f"{what}: expected coefficients {wanted} of form {form!r}, found {found}; "
            "build it with the rule it was saved with"
        )
    if base_of is None:
        return cast(Tensor, saved).to(param.device, param.dtype, copy=True)
    base = base_of(param)
    if saved is not None and not torch.equal(saved.to(base), base):
        raise CheckpointError(
            f"{what}: its base weights are not this backbone's; load the backbone it was saved with"
        )
    return base


def placed(key: str, value: Any, target: Tensor, group: Mapping[str, Any]) -> Any:
    """Return a loaded piece of inner state where the inner optimizer expects it, by torch's rules for its own."""
    if not isinstance(value, Tensor):
        return value
    if key == "step" and not (group.get("capturable") or group.get("fused")):
        return value.clone()
    dtype = target.dtype if value.is_floating_point() and value.shape == target.shape else None
    return value.to(target.device, dtype or value.dtype, copy=True)
