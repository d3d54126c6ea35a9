"""Forms of the live weight in task files: what it is made of besides W and m. They are read and run, not learned.

    plain     W' = W m                          the paper's; no coefficients
    channel   W' = a_o W m                      one scale for each output channel o, the weight's first index
    affine    W' = k0 W + k1 + k2 m + k3 W m    four numbers a weight tensor (Mancini et al. 2018)

A live weight is always computed anew from the base weight, in the order of the formula and with one rounding an
operation. So a switch, a baked model and the run that learned the task agree to the bit, on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piggyback.masks.rule import Form, masked_weight

if TYPE_CHECKING:
    from torch import Tensor


def coefficient_shape(form: Form, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of the coefficients of a weight of ``shape``; None where the form has none.

    >>> coefficient_shape("channel", (8, 3, 3, 3)), coefficient_shape("affine", (8, 3, 3, 3))
    ((8,), (4,))
    """
    return {"plain": None, "channel": tuple(shape[:1]), "affine": (4,)}[form]


def formed_weight(base: Tensor, mask: Tensor, coefficients: Tensor, form: Form) -> Tensor:
    """Return the live weight W' in ``base``'s dtype and shape, computed in float32 (float64 where W is).

    >>> import torch
    >>> base, mask = torch.tensor([[-2.0, 3.0]]), torch.tensor([[False, True]])
    >>> formed_weight(base, mask, torch.tensor([0.5]), "channel")
    tensor([[0.0000, 1.5000]])
    >>> formed_weight(base, mask, torch.tensor([1.0, 0.5, 0.25, 2.0]), "affine")
    tensor([[-1.5000,  9.7500]])
    """
    weight = base if base.dtype.itemsize > 4 else base.float()
    k = coefficients.to(weight.dtype)
    kept = masked_weight(weight, mask)
    if form == "channel":
        return (kept * k.reshape(k.shape + (1,) * (base.ndim - 1))).to(base.dtype)
    made = weight * k[0] + k[1]
    made += mask.to(weight.dtype) * k[2]
    made += kept * k[3]
    return made.to(base.dtype)
