"""Forms of the live weight: what it is made of besides the kept weights. Options of the mask rule.

    plain     W' = W m                          the paper's; no coefficients
    channel   W' = a_o W m                      one scale for each output channel o, the weight's first index
    affine    W' = k0 W + k1 + k2 m + k3 W m    four numbers a weight tensor (Mancini et al. 2018)

Coefficients are float32 and learned with the scores. With g = dL/dW', which backward leaves in ``p.grad``:

    channel   dL/dm = g a_o W           dL/da_o = sum of g W m over the weights of o
    affine    dL/dm = g (k2 + k3 W)     dL/dk   = sums of g W, g, g m, g W m

A live weight is always computed anew from the base weight, in the order of the formula and with one rounding an
operation. So training, a switch and a baked model agree to the bit, on every machine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.masks.rule import Form, masked_weight


def coefficient_shape(form: Form, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of the coefficients of a weight of ``shape``; None where the form has none.

    >>> coefficient_shape("channel", (8, 3, 3, 3)), coefficient_shape("affine", (8, 3, 3, 3))
    ((8,), (4,))
    """
    return {"plain": None, "channel": tuple(shape[:1]), "affine": (4,)}[form]


def initial_coefficients(form: Form, weight: Tensor) -> Tensor:
    """Return coefficients, float32 on the weight's device, with which W' = W m.

    >>> initial_coefficients("affine", torch.ones(2, 3))
    tensor([0., 0., 0., 1.])
    """
    if form == "affine":
        return torch.tensor([0.0, 0.0, 0.0, 1.0], device=weight.device)
    return torch.ones(weight.shape[:1], device=weight.device)


def formed_weight(base: Tensor, mask: Tensor, coefficients: Tensor, form: Form) -> Tensor:
    """Return the live weight W' in ``base``'s dtype and shape, computed in float32 (float64 where W is).

    >>> base, mask = torch.tensor([[-2.0, 3.0]]), torch.tensor([[False, True]])
    >>> formed_weight(base, mask, torch.tensor([0.5]), "channel")
    tensor([[0.0000, 1.5000]])
    >>> formed_weight(base, mask, torch.tensor([1.0, 0.5, 0.25, 2.0]), "affine")
    tensor([[-1.5000,  9.7500]])
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    weight, k = base.to(wide), coefficients.to(wide)
    kept = masked_weight(weight, mask)
    if form == "channel":
        return (kept * _over_rows(k, base)).to(base.dtype)
    made = weight * k[0] + k[1]
    made += mask.to(wide) * k[2]
    made += kept * k[3]
    return made.to(base.dtype)


def mask_slope(weight: Tensor, coefficients: Tensor, form: Form) -> Tensor:
    """Return dW'/dm in float32, the shape of ``weight``: a_o W, or k2 + k3 W.

    >>> mask_slope(torch.tensor([[-2.0, 3.0]]), torch.tensor([0.5]), "channel")
    tensor([[-1.0000,  1.5000]])
    """
    weight = weight.float()
    if form == "channel":
        return weight * _over_rows(coefficients, weight)
    return weight * coefficients[3] + coefficients[2]


def coefficient_gradient(grad: Tensor, base: Tensor, mask: Tensor, form: Form) -> Tensor:
    """Return the gradient of the coefficients, float32, from ``grad`` = dL/dW'.

    >>> grad, base = torch.tensor([[1.0, 1.0]]), torch.tensor([[-2.0, 3.0]])
    >>> coefficient_gradient(grad, base, torch.tensor([[False, True]]), "affine")
    tensor([1., 2., 1., 3.])
    """
    weight = base.float()
    kept = grad * masked_weight(weight, mask)
    if form == "channel":
        return kept.sum(tuple(range(1, kept.ndim))) if kept.ndim > 1 else kept
    return torch.stack([(grad * weight).sum(), grad.sum(), (grad * mask).sum(), kept.sum()])


def _over_rows(coefficients: Tensor, weight: Tensor) -> Tensor:
    """A number for each first index, so that it multiplies all weights of that index."""
    return coefficients.reshape(coefficients.shape + (1,) * (weight.ndim - 1))
