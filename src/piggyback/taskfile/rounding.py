"""Fewer bytes for what is not a mask: a head at five bits per weight, normalisation at two bytes.

A head's row becomes k s, with k from -15 to 15 and one scale s for the row; s has 16 significant bits, so that k s is
exact in float32 and both can be told from the values again. Values are rounded once, when a task is captured, so a
task answers the same before it is saved and after it was loaded; a file then holds them in the shorter form. Heads
whose outputs are numbers rather than scores have k from -127 to 127, a byte per weight, as all had once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.taskfile.header import CODE_BITS

PACKED, BYTE = 15, 127
"""Largest codes: of five bits, and of a byte."""
SCALE_BITS = 16
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Parts of a row's largest magnitude that become the largest code; what is beyond is cut."""
_SMALLEST = 2.0**-100
"""Scales below it are left alone: near the end of float32's range products are no longer exact."""
HALF_ERROR = 2.0**-10
"""Largest relative error that float16 may make in a normalisation tensor."""


def round_rows(weight: Tensor, largest: int = PACKED) -> Tensor:
    """Return ``weight`` with each row (first index) rounded to multiples of its scale, +-``largest`` of it at most.

    Of five bits, the scale has the least squared error; of a byte, nothing is cut. Tensors other than float32 ones of
    two dimensions or more, and values that are not finite, come back as they are.

    >>> round_rows(torch.tensor([[127.0, 3.3, -0.2]]), largest=127)
    tensor([[127.,   3.,   0.]])
    """
    if weight.dtype != torch.float32 or weight.ndim < 2 or not bool(weight.isfinite().all()):
        return weight
    rows = weight.detach().cpu().flatten(1).double()  # not every accelerator has float64
    found, least = rows, torch.full((len(rows), 1), torch.inf, dtype=torch.float64)
    for clip in _CLIPS if largest == PACKED else _CLIPS[:1]:
        mantissa, exponent = torch.frexp(clip * _largest(rows) / largest)
        scales = torch.ldexp((mantissa * 2**SCALE_BITS).ceil() / 2**SCALE_BITS, exponent)
        if bool(((scales > 0) & (scales < _SMALLEST)).any()):
            return weight
        codes = (rows / scales.clamp_min(_SMALLEST)).round().clamp(-largest, largest)
        error = (codes * scales - rows).square().sum(1, keepdim=True)
        found = torch.where(error < least, codes * scales + 0.0, found)
        least = torch.minimum(error, least)
    return found.float().view_as(weight).to(weight.device)


def rows_to_codes(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return int8 codes of the tensor's shape and float32 scales, one for each row, that give it back to the bit.

    None where there are none: for what ``round_rows`` did not make, and for zeros alone.

    >>> codes, scales = rows_to_codes(torch.tensor([[127.0, 3.0], [-254.0, 2.0]]))
    >>> codes, scales
    (tensor([[ 127,    3],
            [-127,    1]], dtype=torch.int8), tensor([1., 2.]))
    """
    if weight.dtype != torch.float32 or weight.ndim < 2 or not bool(weight.isfinite().all()):
        return None
    rows = weight.detach().cpu().flatten(1).double()
    plain = weight.detach().cpu().contiguous()
    for largest in (PACKED, BYTE):
        scales = _largest(rows) / largest
        mantissa = torch.frexp(scales).mantissa * 2**SCALE_BITS
        codes = rows / torch.where(scales > 0, scales, 1.0)
        good = torch.equal(mantissa, mantissa.round()) and torch.equal(codes, codes.round())
        if not good or not bool((scales > 0).any()):
            continue
        found = codes.to(torch.int8).view_as(weight), scales.flatten().float()
        made = codes_to_rows(*found)
        if torch.equal(made.view(torch.int32), plain.view(torch.int32)):  # -0.0 is not 0.0
            return found
    return None


def codes_to_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """Return codes times the scale of their row, float32 of the codes' shape.

    >>> codes_to_rows(torch.tensor([[2, -1]], dtype=torch.int8), torch.tensor([0.5]))
    tensor([[ 1.0000, -0.5000]])
    """
    return codes.float() * scales.view(-1, *[1] * (codes.ndim - 1))


def pack_codes(codes: Tensor) -> Tensor | None:
    """Return int8 codes (rows, n, 1, ...) in five bits each, uint8 (rows, 5 n / 8, 1, ...), lowest bit first.

    None for codes beyond +-15, and for shapes that leave bits over.

    >>> pack_codes(torch.tensor([[-15, -14, 0, 0, 0, 0, 0, 15]], dtype=torch.int8))
    tensor([[ 32, 188, 247, 222, 243]], dtype=torch.uint8)
    """
    rows, wide, rest = len(codes), codes.shape[1], codes.shape[2:]
    if wide * CODE_BITS % 8 or rest.numel() != 1 or bool((codes.abs() > PACKED).any()):
        return None
    places = torch.arange(CODE_BITS)
    bits = (codes.view(rows, wide, 1).int() + PACKED) >> places & 1
    octets = bits.view(rows, wide * CODE_BITS // 8, 8) << torch.arange(8)
    return octets.sum(2).to(torch.uint8).view(rows, -1, *rest)


def unpack_codes(packed: Tensor) -> Tensor:
    """Return the int8 codes that ``pack_codes`` packed; 16 where it packs none.

    >>> unpack_codes(torch.tensor([[32, 188, 247, 222, 243]], dtype=torch.uint8))
    tensor([[-15, -14,   0,   0,   0,   0,   0,  15]], dtype=torch.int8)
    """
    rows, rest = len(packed), packed.shape[2:]
    bits = packed.view(rows, packed.shape[1], 1).int() >> torch.arange(8) & 1
    fives = bits.view(rows, packed.shape[1] * 8 // CODE_BITS, CODE_BITS) << torch.arange(CODE_BITS)
    return (fives.sum(2) - PACKED).to(torch.int8).view(rows, -1, *rest)


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
