"""A task: everything it adds to the backbone, as one object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from piggyback.errors import InputError
from piggyback.masks.rule import MaskRule
from piggyback.names import check_name as check_name
from piggyback.network.backbone import BackboneInfo
from piggyback.texts.preprocessing import Prepares

if TYPE_CHECKING:  # a file's header is read, and a name checked, without torch
    import torch
    from torch import Tensor

    from piggyback.masks.bits import PackedMask


NormPolicy: TypeAlias = Literal["frozen", "affine", "trained"]
"""What a task has of its own in normalisation layers: nothing; scale and shift; these and batch statistics."""
ROW_HEADS = ("linear", "conv", "tokens")
"""Head kinds whose tensors have a row for each class."""


KEEP = "keep"
"""The head kind of a task that answers through the backbone's own head; its fingerprint covers that, too."""
OWN = "own"
"""The kind of a task whose outputs mean what the backbone's do, such as the next token; no class names are known."""


@dataclass(frozen=True)
class TaskInfo:
    """What a task is for and where it comes from; all of it is written into the task file."""

    kind: str = "classification"
    """What the outputs mean: see ``kinds``."""
    classes: tuple[str, ...] = ()
    """Names of classes, labels or numbers, in the order of the head's outputs."""
    rule: MaskRule = field(default_factory=MaskRule)
    head_kind: str = "linear"
    """How to build the head from its tensors: see ``model/heads.py``; ``KEEP`` for the backbone's own, without any."""
    preprocessing: Prepares | None = None
    """Of images, or of texts."""
    backbone: BackboneInfo = field(default_factory=BackboneInfo)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Data, seed, recipe, scores reached; plain JSON values."""
    units: tuple[str, ...] = ()
    """Of each output of a regression; empty where no unit is known."""
    thresholds: tuple[float, ...] = ()
    """Of a multilabel task: the probability from which each label is given; empty for one half."""
    scaling: tuple[tuple[float, float], ...] = ()
    """Of a regression, for each output: offset and scale; output * scale + offset is the number. Empty for 0 and 1."""
    calibration: tuple[float, ...] = ()
    """Of a classification: the temperature that outputs are divided by, and the confidence below which an answer is
    marked as abstained, or 0. Empty for 1 and 0."""

    def __post_init__(self) -> None:
        n = len(self.classes)
        for field_name, kind, expected, good in (
            ("units", "regression", "a text", lambda unit: isinstance(unit, str)),
            ("thresholds", "multilabel", "a number from 0 to 1", _is_share),
            ("scaling", "regression", "a finite offset and a scale above 0", _is_scaling),
        ):
            values = getattr(self, field_name)
            if values and (self.kind != kind or len(values) != n or not all(map(good, values))):
                raise InputError(
                    f"{field_name} {values!r} of a {self.kind} task with {n} outputs: expected {expected} for each "
                    f"output of a {kind} task"
                )
        found = self.calibration
        good_one = len(found) == 2 and _is_share(found[1]) and _finite(found[0]) and found[0] > 0
        if found and not (self.kind == "classification" and good_one):
            raise InputError(
                f"calibration {found!r} of a {self.kind} task: expected a temperature above 0 and a confidence from "
                "0 to 1, of a classification"
            )

    def going_on(self, start: TaskInfo) -> TaskInfo:
        """Return this with the scaling of the numbers that ``start`` has too, whose rows of the head it starts with.

        Raises InputError where such a number has another unit.
        """
        units = dict(zip(start.classes, start.units, strict=False))
        if units and not self.units:
            return replace(
                self, units=tuple(units.get(name, "") for name in self.classes)
            ).going_on(start)
        if not (self.scaling or start.scaling):
            return self
        for name, unit in zip(self.classes, self.units, strict=False):
            if (before := units.get(name)) and unit and unit != before:
                raise InputError(
                    f"{name!r} is in {unit!r}, and in {before!r} of the task that is gone on from: expected that unit"
                )
        plain = ((0.0, 1.0),) * max(len(self.classes), len(start.classes))
        held = dict(zip(start.classes, start.scaling or plain, strict=False))
        pairs = zip(self.classes, self.scaling or plain, strict=False)
        return replace(self, scaling=tuple(held.get(name, pair) for name, pair in pairs))


def _finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_share(value: Any) -> bool:
    return _finite(value) and 0 <= value <= 1


def _is_scaling(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(map(_finite, pair)) and pair[1] > 0


@dataclass(frozen=True, repr=False)
class Task:
    """Masks, head and normalisation of one task; its tensors are never changed in place."""

    name: str
    masks: Mapping[str, PackedMask]
    """By the weight's parameter name, in the backbone's order; empty for a task that is a head only."""
    head: Mapping[str, Tensor]
    """The head's state dict."""
    norm: Mapping[str, Tensor] = field(default_factory=dict)
    """Normalisation parameters and statistics by state-dict name; empty when the backbone's are used."""
    info: TaskInfo = field(default_factory=TaskInfo)
    coefficients: Mapping[str, Tensor] = field(default_factory=dict)
    """float32, for each masked weight; empty for a rule of the plain form. Shapes: see ``coefficient_shape``."""

    def __post_init__(self) -> None:
        check_name(self.name)

    def __repr__(self) -> str:
        masks = (
            f"{self.density:.1%} of {self.weights:,} weights kept" if self.masks else "a head alone"
        )
        own = f", {len(self.norm)} tensors of normalisation" if self.norm else ""
        what = f"{self.info.kind}, {len(self.info.classes)} classes"
        if self.info.kind == OWN:
            what = "answers as the backbone does"
        return f"Task({self.name!r}: {what}; {masks}{own})"

    @property
    def weights(self) -> int:
        """Number of masked weights."""
        return sum(mask.numel for mask in self.masks.values())

    @property
    def density(self) -> float:
        """Fraction of masked weights that are kept; 1.0 without masks."""
        return sum(m.kept for m in self.masks.values()) / self.weights if self.weights else 1.0

    @property
    def nbytes(self) -> int:
        """Bytes this task holds in memory: packed masks, coefficients, head and normalisation."""
        tensors = (*self.coefficients.values(), *self.head.values(), *self.norm.values())
        dense = sum(t.numel() * t.element_size() for t in tensors)
        return dense + sum(mask.nbytes for mask in self.masks.values())

    def renamed(self, name: str) -> Task:
        """Return the same task under another name."""
        return replace(self, name=name)

    def to(self, device: torch.device | str) -> Task:
        """Return the same task with its tensors on ``device``."""
        return replace(
            self,
            masks={name: mask.to(device) for name, mask in self.masks.items()},
            head={name: tensor.to(device) for name, tensor in self.head.items()},
            norm={name: tensor.to(device) for name, tensor in self.norm.items()},
            coefficients={name: tensor.to(device) for name, tensor in self.coefficients.items()},
        )
