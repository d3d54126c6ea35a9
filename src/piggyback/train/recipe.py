"""Recipes: every choice that decides what a training run ends in, with its default and why.

The command line makes its options and their help from the fields and the texts below them; so that help is there at
once, nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from piggyback.errors import InputError
from piggyback.masks.regularize import EntropyPrice, PullToKeep, Regularizer, TargetDensity
from piggyback.masks.rule import HEAD_LR, GradScale, MaskRule, ScoreInit
from piggyback.taskfile.task import NormPolicy

SHORTEST, LONG, MOST_EPOCHS = 480, 800, 60
"""Steps of a run of few images, and of one of many: shorter ones lose accuracy, longer ones cost time."""
HOW = ("workers", "checkpoint_minutes", "tensorboard")
"""Fields that change how a run goes about, not what it ends in; a resumed run may change them."""
READ_ONLY = ("rule.form",)
"""Fields that recipes in files may have set, but nobody can choose any more: they get no option."""


@dataclass(frozen=True)
class Augment:
    """What may happen to a training image.

    >>> Augment(flip=True)
    Augment(shift=0.125, flip=True, crop=1.0, policy='none')
    """

    shift: float = 0.125
    """Largest random shift, as a fraction of the image's side; the border is mirrored. 0 turns it
    off."""
    flip: bool = False
    """Mirror half of the images left to right; wrong for letters, digits and signs, so off unless
    asked for."""
    crop: float = 1.0
    """Smallest area, as a fraction, of a random square crop that is resized back; 1 turns it
    off."""
    policy: Literal["none", "trivial", "rand"] = "none"
    """An automatic policy of torchvision: TrivialAugmentWide or RandAugment. They include colour
    and shear."""

    def __post_init__(self) -> None:
        if not 0 <= self.shift < 1:
            raise InputError(f"shift {self.shift}: expected a fraction from 0 to below 1")
        if not 0 < self.crop <= 1:
            raise InputError(f"crop {self.crop}: expected a fraction above 0, at most 1")
        if self.policy not in ("none", "trivial", "rand"):
            raise InputError(f"policy {self.policy!r}: expected 'none', 'trivial' or 'rand'")

    def source_side(self, size: int) -> int:
        """Return the side that images are kept at, so that a crop has more pixels than it needs."""
        return size if self.crop == 1 else round(size * 1.25)


@dataclass(frozen=True)
class Recipe:
    """What to train, for how long, and how.

    >>> Recipe("head", epochs=3).epochs
    3
    """

    method: str = "masks"
    """masks: which weights to keep, one bit each; head: the classifier only; finetune: every
    weight, a full copy; lora: low-rank adapters (needs the extra peft)."""
    epochs: int | None = None
    """Passes over the training images; by default as many as make about 800 steps, but 5 to 60, and 480 steps
    or more."""
    batch_size: int = 32
    """Images per step, over all processes together."""
    image_size: int | None = None
    """Side of the square the network sees, in pixels; by default the images' own, a multiple of 32
    from 64 to what the backbone was trained on."""
    crop_pct: float = 1.0
    """1.0 squeezes the whole image into the square; below, that part of its shorter side is cut
    from the centre."""
    seed: int = 0
    """Decides the head's start, the order of the images, augmentation and dropout."""

    mask_lr: float | None = None
    """Peak learning rate of the mask scores (Adam); by default what follows from the number of steps."""
    mask_rate: float = 1.0
    """Factor of the derived mask rate: above 1 more weights are masked out, below fewer."""
    head_lr: float = HEAD_LR
    """Peak learning rate of the classifier, for the methods masks, head and lora."""
    norm_lr: float = HEAD_LR
    """Peak learning rate of normalisation layers, where masks or adapters train them too."""
    finetune_lr: float = 1e-3
    """Peak learning rate of all weights in the method finetune."""
    finetune_optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd: with momentum 0.9, as the paper's fine-tuning has it (rate 1e-3, schedule step, 30 epochs)."""
    lora_rank: int | None = None
    """Rank of the method lora; by default the largest whose adapters fit into lora_bytes."""
    lora_bytes: int | None = None
    """Bytes that LoRA's adapters may take; by default one bit a maskable weight, as the paper's masks do."""
    lora_lr: float = 5e-3
    """Peak learning rate of LoRA's adapters, whose alpha is their rank."""
    prune: float = 0.5
    """Share of the weights that a task trained which PackNet frees for the next, smallest magnitudes first."""
    prune_epochs: int | None = None
    """Epochs that PackNet trains on after it has pruned; by default half of epochs."""
    weight_decay: float = 0.0
    """Decoupled weight decay of weights and classifier, as AdamW has it; with sgd, added to the gradient; scores
    never decay."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """cosine: warm-up, then down to 0 along a cosine; step: the paper's, a tenth from half-way on;
    constant."""
    warmup: float = 0.3
    """Fraction of the steps in which the learning rate rises to its peak, for the cosine
    schedule."""
    label_smoothing: float = 0.1
    """Share of the target probability that is spread over all classes."""
    clip: float | None = None
    """Largest norm of the gradient; larger ones are scaled down to it."""
    accumulate: int = 1
    """Pieces a batch is cut into, to save memory; the gradient is the same but for rounding."""
    tune: bool = False
    """Choose the rate, and for masks the start, by short trainings on val first: twice the steps in all."""
    patience: int | None = None
    """Stop after this many epochs without a better val accuracy; by default never."""

    norm: NormPolicy = "frozen"
    """Normalisation layers while masks, heads or adapters train: frozen, with the task's own scale and shift
    (affine), or with its own batch statistics as well (trained)."""
    finetune_norm: Literal["frozen", "trained"] = "trained"
    """Normalisation layers in the method finetune."""
    select: tuple[str, ...] | None = None
    """Names, globs or 're:' patterns of the weights to mask; by default all but the
    classifier's."""
    rule: MaskRule = field(default_factory=MaskRule)
    """How scores become a mask."""
    init: ScoreInit = field(default_factory=ScoreInit)
    """Where scores start."""
    grad_scale: GradScale = "none"
    """Divide a score's gradient by nothing, the layer's mean |W|, or each |W|."""
    regularizers: tuple[Regularizer, ...] = ()
    """Terms added to the scores' gradient."""
    augment: Augment = field(default_factory=Augment)
    """What may happen to a training image."""

    amp: Literal["auto", "no", "bf16"] = "auto"
    """Arithmetic of the forward pass: float32, bfloat16 where it can, or whichever is measured
    faster."""
    channels_last: Literal["auto", "yes", "no"] = "auto"
    """Order of images in memory; auto: measured, and remembered for this machine, model and
    batch."""
    compile: bool = False
    """Compile the network first: faster steps after a start of about a minute."""
    workers: int = 2
    """Processes that decode images, where these are too many to be kept in memory."""
    checkpoint_minutes: float = 5.0
    """A checkpoint is written after every epoch, and in between when this many minutes have
    passed."""
    tensorboard: bool = True
    """Write TensorBoard logs beside the CSV and JSON ones."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate"):
            value = getattr(self, name)
            _check(name, value, isinstance(value, int) and value >= 1, "an integer from 1")
        for name in ("mask_rate", "head_lr", "norm_lr", "finetune_lr", "lora_lr"):
            value = getattr(self, name)
            _check(name, value, 0 < value < math.inf, "a finite number above 0")
        for name in ("mask_lr", "clip"):
            value = getattr(self, name)
            good = value is None or 0 < value < math.inf
            _check(name, value, good, "a finite number above 0, or none")
        for name in ("epochs", "lora_rank", "lora_bytes", "prune_epochs"):
            value = getattr(self, name)
            good = value is None or (isinstance(value, int) and value >= 1)
            _check(name, value, good, "an integer from 1, or none")
        for name in ("weight_decay", "checkpoint_minutes", "workers"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "a number from 0")
        for name in ("warmup", "label_smoothing"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "from 0 to below 1")
        _check("patience", self.patience, self.patience is None or self.patience >= 1, "1 or more")
        _check("prune", self.prune, 0 <= self.prune < 1, "from 0 to below 1")
        _check("crop_pct", self.crop_pct, 0 < self.crop_pct <= 1, "above 0, at most 1")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            _check(name, value, value in choices, f"one of {', '.join(choices)}")

    def epochs_for(self, images: int) -> int:
        """Return the passes over ``images`` training images.

        >>> Recipe().epochs_for(256), Recipe(epochs=3).epochs_for(256)
        (60, 3)
        """
        return self.epochs or default_epochs(images, self.batch_size)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as plain JSON values; a regulariser has its class name as ``kind``."""
        values = dataclasses.asdict(self)
        values["regularizers"] = [_regularizer_json(r) for r in self.regularizers]
        values["select"] = None if self.select is None else list(self.select)
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Recipe:
        """Return the recipe that ``to_json`` wrote, of an older version too; raises InputError for wrong fields.

        >>> Recipe.from_json(Recipe(epochs=2).to_json()) == Recipe(epochs=2)
        True
        """
        try:
            made = current(values)
            made["rule"] = MaskRule(**made["rule"])
            made["init"] = ScoreInit(**made["init"])
            made["augment"] = Augment(**made["augment"])
            made["select"] = None if made["select"] is None else tuple(made["select"])
            made["regularizers"] = tuple(_regularizer(r) for r in made["regularizers"])
            return Recipe(**made)
        except (KeyError, TypeError) as error:
            raise InputError(f"recipe: {error}") from error

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the result, as JSON: what makes two runs different ones."""
        return {name: value for name, value in self.to_json().items() if name not in HOW}


def current(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's JSON without the fields that older versions wrote and this one has no more."""
    return {key: value for key, value in values.items() if key != "form_lr"}  # of mask forms


CHOICES: dict[str, tuple[str, ...]] = {
    "schedule": ("cosine", "step", "constant"),
    "norm": get_args(NormPolicy),
    "finetune_norm": ("frozen", "trained"),
    "finetune_optimizer": ("adamw", "sgd"),
    "grad_scale": get_args(GradScale),
    "amp": ("auto", "no", "bf16"),
    "channels_last": ("auto", "yes", "no"),
}
"""Values of the fields that take one of a few words."""

_REGULARIZERS: dict[str, type] = {
    kind.__name__: kind for kind in (PullToKeep, TargetDensity, EntropyPrice)
}


def default_epochs(images: int, batch_size: int) -> int:
    """Return the passes over ``images`` training images where a recipe does not say: see docs/RECIPES.md.

    >>> [default_epochs(images, 32) for images in (32, 256, 1000, 4000, 50_000)]
    [480, 60, 26, 7, 5]
    """
    steps = max(images // batch_size, 1)
    wanted = min(max(MOST_EPOCHS * steps, SHORTEST), LONG)
    return max(-(-wanted // steps), 5)


def _check(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise InputError(f"{name} {value!r}: expected {expected}")


def _regularizer_json(regularizer: Regularizer) -> dict[str, Any]:
    if type(regularizer) not in _REGULARIZERS.values():
        raise InputError(
            f"regularizer {regularizer!r}: expected one of {', '.join(_REGULARIZERS)}, "
            "which can be written into a task file"
        )
    options = dataclasses.asdict(regularizer)  # type: ignore[call-overload]
    return {"kind": type(regularizer).__name__, **options}


def _regularizer(values: Mapping[str, Any]) -> Regularizer:
    options = dict(values) if isinstance(values, Mapping) else {}
    kind = options.pop("kind", None)
    if kind not in _REGULARIZERS:
        raise InputError(
            f"regularizer {values!r}: expected a kind of {', '.join(_REGULARIZERS)}, and its options"
        )
    made: Regularizer = _REGULARIZERS[kind](**options)
    return made
