"""A frozen network rewritten to run fast and give the same outputs: what of it pays is measured on this machine."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from piggyback.errors import BackboneError
from piggyback.images.preprocessing import Preprocessing
from piggyback.serve.replicas.fastest import Build, fastest
from piggyback.serve.replicas.folding import Folds, agree, find_pairs, fold_, pointwise_
from piggyback.zoo.weights import first_line

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]

BFLOAT16_GAIN = 1.15
"""bfloat16 costs accuracy: it is chosen where it is so many times faster."""
POINTWISE_GAIN = 1.02
"""What a clock can tell apart."""


@dataclass(frozen=True)
class Prepared:
    """A network as live copies will run it."""

    module: nn.Module
    dtype: torch.dtype
    folds: Folds
    plain: dict[str, Tensor]
    """The weights that were scaled in ``module``, as they were before, in ``dtype``."""
    speed: str
    """What was done, in words."""


def prepare(
    module: nn.Module,
    head: str,
    masked: Collection[str],
    preprocessing: Preprocessing | None,
    precision: Precision,
    fold: bool,
) -> Prepared:
    """Return ``module``, which is in eval mode and in float32, made ready; it may have been changed.

    Networks whose ``preprocessing`` is not known take inputs that are not known: nothing is tried out on them.
    Raises BackboneError where a network does not take the images that it is said to.
    """
    images = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
    if images:
        module.to(memory_format=torch.channels_last)
    folds, best = Folds((), {}), Build(module, torch.float32)
    remarks: list[str] = []
    if preprocessing is not None:
        side = preprocessing.image_size
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        best, folds, remarks = _tried(module, head, masked, Batches(side, device), precision, fold)
    elif precision == "bfloat16":
        best = _lowered(best, 1.0)
    words = [str(best.dtype).removeprefix("torch."), "channels last" if images else ""]
    words += [*remarks, f"{best.pointwise} convolutions as products" if best.pointwise else ""]
    plain = {name: module.get_parameter(name).detach().to(best.dtype) for name in folds.pairs}
    return Prepared(best.module, best.dtype, folds, plain, ", ".join(filter(None, words)))


@dataclass(frozen=True)
class Batches:
    """Random images to try networks on, always the same ones."""

    side: int
    device: torch.device

    def __call__(self, batch: int) -> Tensor:
        """Return ``batch`` images, float32 and channels last.

        >>> Batches(8, torch.device("cpu"))(2).shape
        torch.Size([2, 3, 8, 8])
        """
        generator = torch.Generator().manual_seed(batch)
        x = torch.randn(batch, 3, self.side, self.side, generator=generator)
        return x.to(self.device).contiguous(memory_format=torch.channels_last)


def _tried(
    module: nn.Module,
    head: str,
    masked: Collection[str],
    inputs: Batches,
    precision: Precision,
    fold: bool,
) -> tuple[Build, Folds, list[str]]:
    """The build that is fastest, what was folded in it, and what is to be said of it."""
    if problem := _problem(module, inputs(1)):
        raise BackboneError(
            f"the network takes no images of 3 x {inputs.side} x {inputs.side} ({problem}): expected what its "
            "preprocessing says; give it the right one, or none"
        )
    folds, builds = Folds((), {}), [Build(module, torch.float32)]
    remarks: list[str] = []
    if fold:
        folds, builds, remarks = _rewritten(module, head, masked, inputs(2))
    if precision != "float32":
        low = [_lowered(build, BFLOAT16_GAIN if precision == "auto" else 1.0) for build in builds]
        problem = _problem(low[0].module, inputs(1).to(torch.bfloat16))
        if problem and precision == "bfloat16":
            raise BackboneError(f"the network does not run in bfloat16 ({problem}): take float32")
        if problem:
            remarks.append(f"does not run in bfloat16: {problem}")
        else:
            builds = low if precision == "bfloat16" else [*builds, *low]
    return fastest(builds, inputs), folds, remarks


def _rewritten(
    module: nn.Module, head: str, masked: Collection[str], x: Tensor
) -> tuple[Folds, list[Build], list[str]]:
    """The folds that leave the outputs as they are, the builds to choose from, and what is to be said of it."""
    folds, folded = Folds((), {}), module
    remarks: list[str] = []
    pairs = find_pairs(module, x)
    if pairs:
        changed = copy.deepcopy(module)
        found = fold_(changed, pairs)
        if agree(module, changed, masked, x):
            folds, folded, remarks = found, changed, [f"{len(pairs)} norms folded"]
        else:
            remarks = ["norms not folded: the outputs would differ"]
    builds = [Build(folded, torch.float32)]
    products = copy.deepcopy(folded)
    count = pointwise_(products, head)
    if count and agree(folded, products, (), x):
        builds.append(Build(products, torch.float32, count, handicap=POINTWISE_GAIN))
    return folds, builds, remarks


def _lowered(build: Build, gain: float) -> Build:
    module = copy.deepcopy(build.module).to(torch.bfloat16)
    return replace(build, module=module, dtype=torch.bfloat16, handicap=build.handicap * gain)


def _problem(module: nn.Module, x: Tensor) -> str:
    """Why a network cannot run on ``x``, in a line; empty if it can."""
    try:
        module(x)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        return first_line(error) or type(error).__name__
    return ""
