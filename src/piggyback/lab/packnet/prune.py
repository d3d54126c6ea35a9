"""What PackNet does to weights: the smallest are given back, and all but a task's own are held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def smallest(weight: Tensor, among: Tensor, share: float) -> Tensor:
    """Return where the ``share`` of smallest magnitude lies of the weights that ``among`` marks.

    Both are tensors of one shape, ``among`` and the answer bool. Exactly ``round(share * n)`` of n
    marked weights are chosen; of equal magnitudes those that come first in C order. One layer is
    one call: PackNet prunes each by itself (Mallya & Lazebnik, CVPR 2018, section 3).

    >>> smallest(torch.tensor([3.0, -1.0, 0.5, 1.0]), torch.tensor([1, 1, 0, 1]).bool(), 1 / 3)
    tensor([False,  True, False, False])
    """
    marked = among.reshape(-1).nonzero().view(-1)
    magnitudes = weight.detach().reshape(-1)[marked].abs()
    order = magnitudes.argsort(stable=True)[: round(share * len(marked))]
    chosen = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    chosen[marked[order]] = True
    return chosen.view(weight.shape)


def hold(
    module: nn.Module, optimizer: torch.optim.Optimizer, trainable: Mapping[str, Tensor]
) -> None:
    """Let ``optimizer`` move a parameter's values only where its ``trainable`` is true.

    The others get no gradient, so that neither clipping nor the optimizer's moments know them, and
    after each step they are put back from a copy: weight decay and momentum do not move them
    either, to the bit. Parameters that ``trainable`` does not name are left alone.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> sgd = torch.optim.SGD(net.parameters(), lr=1.0, weight_decay=0.1)
    >>> before = net.weight.detach().clone()
    >>> hold(net, sgd, {"weight": torch.tensor([[True, False]])})
    >>> net(torch.ones(1, 2)).sum().backward(); sgd.step()
    >>> (net.weight == before).tolist()
    [[False, True]]
    """
    held = []
    for name, mask in trainable.items():
        if bool(mask.all()):
            continue
        param = module.get_parameter(name)
        # As the parameter lies in memory, so that each step reads all three in one order.
        free = torch.empty_like(param, dtype=torch.bool, requires_grad=False).copy_(mask)
        held.append((param, free, param.detach().clone()))
        param.register_hook(_Keep(free))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def put_back(*_: Any) -> None:
        for param, free, fixed in held:
            param.copy_(torch.where(free, param, fixed))

    optimizer.register_step_post_hook(put_back)


class _Keep:
    """A gradient hook: zero where a weight is held, whatever stood there, NaN included."""

    def __init__(self, free: Tensor) -> None:
        self.free = free

    def __call__(self, gradient: Tensor) -> Tensor:
        return torch.where(self.free, gradient, 0)
