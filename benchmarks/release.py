"""This package against the method as its authors released it: layers mask their weights in every forward.

A layer clones its scores, writes 0 and 1 into the clone by index, and multiplies the clone with the weight; backward
goes through all of it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.command import main
from benchmarks.measure import Row, Settings, compare
from benchmarks.networks import CLASSES, Side, add_task, batch, masks_side, network
from piggyback import MultiTaskModel

AIM = 1.0
THRESHOLD, START = 5e-3, 1e-2


class Binarize(torch.autograd.Function):
    """Scores to zeros and ones; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: object, scores: Tensor) -> Tensor:
        """Return 1 where a score is above the threshold, else 0."""
        mask = scores.clone()
        mask[scores <= THRESHOLD] = 0
        mask[scores > THRESHOLD] = 1
        return mask

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        """Return the gradient as it is."""
        return grad


class MaskedConv2d(nn.Module):
    """A convolution that masks its frozen weight whenever it runs."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv.requires_grad_(False)
        self.scores = nn.Parameter(torch.full_like(conv.weight, START))

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution with the masked weight."""
        return self.conv._conv_forward(
            x, Binarize.apply(self.scores) * self.conv.weight, self.conv.bias
        )


def rows(settings: Settings) -> list[Row]:
    """Return a row for the training step and one for the forward pass."""
    name = settings.networks[0]
    backbone = network(name, settings)
    x, y = batch(settings, 32, 64)
    ours = masks_side(backbone, norm="frozen", fused=True)
    net = _as_released(backbone)
    scores = [p for p in net.parameters() if p.requires_grad]
    theirs = Side(net, torch.optim.Adam(scores, lr=1e-4, fused=True))
    step = compare(lambda: ours.step(x, y), lambda: theirs.step(x, y), settings, repeats=5)
    model = MultiTaskModel(backbone)
    add_task(model, "task", 0)
    few = x[:8]
    with torch.inference_mode():
        forward = compare(lambda: model(few), lambda: net(few), settings, repeats=11)
    return [
        Row(f"release step {name}", step.ratio, AIM, step.ours, step.theirs, "s/step"),
        Row(
            f"release forward {name}",
            forward.ratio,
            AIM,
            1e3 * forward.ours,
            1e3 * forward.theirs,
            "ms",
        ),
    ]


def _as_released(backbone: nn.Module) -> nn.Module:
    """A copy whose convolutions mask themselves; batch norm stays in eval mode, as in the release."""
    net = copy.deepcopy(backbone).requires_grad_(False)
    net.reset_classifier(CLASSES)  # timm's
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, MaskedConv2d(child))
    return net.to(next(backbone.parameters()).device)


if __name__ == "__main__":
    main("release")
