"""The task switch: base weights AND bits -> live weights, for all layers of a model in few operations.

    bits of all layers, a word a row    w0   w1   w2  ...    each layer begins with a new word
    shifted left by 31, 30, ... 0       the bit of each weight is a word's sign
    shifted right by 31                 all ones or all zeros: a block of layers at once, in the cache
    live = base AND that                one operation a layer, or a block of a large one

Small networks have many small layers: what each costs beside its weights is one call, on views made
before. Words are little-endian, as on every machine that torch is built for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.errors import InputError
from piggyback.masks.bits import PackedMask, words
from piggyback.masks.flat import FlatBits, FlatMasks, Layout, padded

BLOCK = {"cpu": 1 << 19, "cuda": 1 << 23}
"""Weights expanded at once: 2 MiB of float32 words per thread; a GPU wants fewer, larger calls."""


class Scratch:
    """Memory that switches expand bits in; shared by plans of which never two are at work at once."""

    def __init__(self) -> None:
        self._held: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def __reduce__(self) -> tuple[type[Scratch], tuple[()]]:
        return Scratch, ()  # a copy is used at other times

    def words(self, like: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Return what moves each bit to the sign, (bits of a word,), and room for ``rows`` expanded words.

        That is the distance to shift by, or for words of 16 bits the power of two to multiply with: torch shifts them
        half as fast.
        """
        width = 8 * like.element_size()
        held = self._held.get((like.dtype, like.device))
        if held is None or len(held[1]) < rows:
            with torch.inference_mode(False):  # tensors made in it cannot be written to outside
                by = torch.arange(width - 1, -1, -1, dtype=like.dtype, device=like.device)
                if width == 16:
                    by = torch.ones_like(by) << by
                held = (by, like.new_empty(rows, width))
            self._held[like.dtype, like.device] = held
        return held[0], held[1][:rows]


@dataclass(frozen=True)
class _Block:
    rows: slice
    """Of the bits as words."""
    expanded: Tensor
    """(rows, bits of a word)"""
    pieces: list[tuple[Tensor, Tensor, Tensor]]
    """Live weights, base weights and expanded bits of a layer or a part of one, flat."""


class SwitchPlan:
    """Writes W * m into the live weights of some layers of one dtype and device; zeros are exact.

    The plan holds views of the weights: make another when a weight has moved.
    """

    def __init__(
        self, live: Sequence[Tensor], base: Sequence[Tensor], scratch: Scratch | None = None
    ) -> None:
        like = words(base[0])
        self._dtype, self._last = like.dtype, 8 * like.element_size() - 1
        self._lift = torch.mul if self._last == 15 else torch.bitwise_left_shift
        room = BLOCK.get(like.device.type, BLOCK["cuda"])
        if like.device.type == "cpu":
            room *= min(torch.get_num_threads(), 4)
        total = sum(8 * padded(-(-weight.numel() // 8)) for weight in base)
        rows = min(room, total) // (self._last + 1)
        self._by, expanded = (scratch or Scratch()).words(like, rows)
        self._blocks = list(_blocks([words(w) for w in live], [words(w) for w in base], expanded))

    @torch.no_grad()
    def write_(self, bits: FlatBits) -> None:
        """Write the live weights of these bits, whose masks are in the order of the layers."""
        keep = bits.keep.view(self._dtype).unsqueeze(1)
        negative = None
        if bits.negative is not None:
            negative = bits.negative.view(self._dtype).unsqueeze(1)
        for block in self._blocks:
            self._lift(keep[block.rows], self._by, out=block.expanded)
            block.expanded.bitwise_right_shift_(self._last)
            for live, base, expanded in block.pieces:
                torch.bitwise_and(base, expanded, out=live)
            if negative is not None:
                self._lift(negative[block.rows], self._by, out=block.expanded)
                block.expanded.bitwise_and_(torch.iinfo(self._dtype).min)
                for live, _, signs in block.pieces:
                    live.bitwise_xor_(signs)


@torch.no_grad()
def write_masked_(live: Tensor, base: Tensor, packed: PackedMask) -> Tensor:
    """Return ``live`` after writing W * m into it, in place; zeros are exact and W is never read back from it.

    ``live`` and ``base`` share dtype, device and a dense layout; the bits are in that layout's order of memory.

    >>> from piggyback.masks.bits import pack
    >>> base = torch.tensor([-2.0, 3.0, 4.0])
    >>> write_masked_(torch.empty(3), base, pack(torch.tensor([False, True, True])))
    tensor([0., 3., 4.])
    """
    if live.stride() != base.stride() or live.dtype != base.dtype or live.numel() != packed.numel:
        raise InputError(
            f"live weights {live.dtype} {tuple(live.shape)}, base weights {base.dtype} "
            f"{tuple(base.shape)}, mask {packed.shape}: expected the same dtype, layout and size"
        )
    masks = {"": packed}
    (bits,) = FlatMasks(Layout(masks, {"": base}), [packed]).parts
    SwitchPlan([live], [base]).write_(bits)
    return live


def _blocks(live: list[Tensor], base: list[Tensor], expanded: Tensor) -> Iterator[_Block]:
    """Cut layers into blocks of as many weights as ``expanded`` has room for."""
    room, width = expanded.numel(), expanded.shape[1]
    start = used = 0
    pieces: list[tuple[Tensor, Tensor, Tensor]] = []
    for out, source in zip(live, base, strict=True):
        done = 0
        while done < len(out):
            take = min(len(out) - done, room - used)
            part = slice(done, done + take)
            pieces.append((out[part], source[part], expanded.view(-1)[used : used + take]))
            done += take
            used += 8 * padded(-(-take // 8))
            if used == room:
                yield _Block(slice(start, start + used // width), expanded, pieces)
                start, used, pieces = start + used // width, 0, []
    if pieces:
        yield _Block(slice(start, start + used // width), expanded[: used // width], pieces)
