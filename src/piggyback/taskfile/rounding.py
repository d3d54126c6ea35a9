"""Fewer bytes for what is not a mask: a head at a byte per weight, normalisation at two.

A head's row becomes k s, with k from -127 to 127 and one scale s for the row; s has 16 significant bits, so that k s is
exact in float32 and both can be told from the values again. Values are rounded once, when a task is captured, so a
task answers the same before it is saved and after it was loaded; a file then holds them in the shorter form.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127
SCALE_BITS = 16
_SMALLEST = 2.0**-100
"""Scales below it are left alone: near the end of float32's range products are no longer exact."""
HALF_ERROR = 2.0**-10
"""Largest relative error that float16 may make in a normalisation tensor."""


def round_rows(weight: Tensor) -> Tensor:
    """Return ``weight`` with each row (first index) rounded to a multiple of its scale, largest +-127.

    Tensors other than float32 ones of two dimensions or more, and values that are not finite, come back as they are.

    >>> round_rows(torch.tensor([[127.0, 3.3, -0.2]]))
    tensor([[127.,   3.,   0.]])
    """
    if weight.dtype != torch.float32 or weight.ndim < 2 or not bool(weight.isfinite().all()):
        return weight
    rows = weight.detach().cpu().flatten(1).double()  # not every accelerator has float64
    mantissa, exponent = torch.frexp(_largest(rows) / LARGEST)
    scales = torch.ldexp((mantissa * 2**SCALE_BITS).ceil() / 2**SCALE_BITS, exponent)
    if bool(((scales > 0) & (scales < _SMALLEST)).any()):
        return weight
    codes = (rows / scales.clamp_min(_SMALLEST)).round()
    return (codes * scales + 0.0).float().view_as(weight).to(weight.device)


def rows_to_int8(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return int8 codes of the tensor's shape and float32 scales, one for each row, that give it back to the bit.

    None where there are none: for what ``round_rows`` did not make, and for zeros alone.

    >>> codes, scales = rows_to_int8(torch.tensor([[127.0, 3.0], [-254.0, 2.0]]))
    >>> codes, scales
    (tensor([[ 127,    3],
            [-127,    1]], dtype=torch.int8), tensor([1., 2.]))
    """
    if weight.dtype != torch.float32 or weight.ndim < 2 or not bool(weight.isfinite().all()):
        return None
    rows = weight.detach().cpu().flatten(1).double()
    scales = _largest(rows) / LARGEST
    mantissa = torch.frexp(scales).mantissa * 2**SCALE_BITS
    if not bool((scales > 0).any()) or not torch.equal(mantissa, mantissa.round()):
        return None
    codes = rows / torch.where(scales > 0, scales, 1.0)
    if not torch.equal(codes, codes.round()):
        return None
    found = codes.to(torch.int8).view_as(weight), scales.flatten().float()
    made = int8_to_rows(*found)
    plain = weight.detach().cpu().contiguous()
    same = torch.equal(made.view(torch.int32), plain.view(torch.int32))  # -0.0 is not 0.0
    return found if same else None


def int8_to_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """Return codes times the scale of their row, float32 of the codes' shape.

    >>> int8_to_rows(torch.tensor([[2, -1]], dtype=torch.int8), torch.tensor([0.5]))
    tensor([[ 1.0000, -0.5000]])
    """
    return codes.float() * scales.view(-1, *[1] * (codes.ndim - 1))


def round_half(tensor: Tensor) -> Tensor:
    """Return a float32 tensor rounded to float16's values, where none changes by more than 2^-10 of itself.

    >>> round_half(torch.tensor([1.0001, 3e-9])), round_half(torch.tensor([1.0001]))
    (tensor([1.0001e+00, 3.0000e-09]), tensor([1.]))
    """
    if tensor.dtype != torch.float32:
        return tensor
    rounded = tensor.half().float()
    close = (rounded - tensor).abs() <= HALF_ERROR * tensor.abs()
    return rounded if bool((close & rounded.isfinite()).all()) else tensor


def to_half(tensor: Tensor) -> Tensor | None:
    """Return a float32 tensor as float16 where that keeps it to the bit, else None."""
    if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
        return None
    half = tensor.detach().half()
    return half if torch.equal(half.float(), tensor) else None


def _largest(rows: Tensor) -> Tensor:
    """The largest magnitude of each row, (rows, 1); 0 for rows without values."""
    if not rows.shape[1]:
        return rows.new_zeros(len(rows), 1)
    return rows.abs().amax(1, keepdim=True)
