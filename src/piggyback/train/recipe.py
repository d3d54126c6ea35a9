"""Recipes: every choice that decides what a training run ends in, with its default and why.

Fields are grouped in one class of options for each method, and three for what all methods share. The command line
makes its options, their groups and their help from these classes. Nothing here imports torch, so that a help page
does not wait for it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from piggyback.errors import InputError, check_number
from piggyback.kinds.calibration import AbstainAt
from piggyback.masks.regularize import EntropyPrice, PullToKeep, Regularizer, TargetDensity
from piggyback.masks.rule import HEAD_LR, MARGIN, GradScale, MaskRule, ScoreInit, derived_mask_lr
from piggyback.taskfile.task import NormPolicy

SHORTEST, LONG, MOST_EPOCHS = 480, 800, 60
"""Steps of a run of few images, and of one of many: shorter ones lose accuracy, longer ones cost time."""
SHORT = 1600
"""In convolutional networks a run of T steps has a rate of at most T / ``SHORT`` margins, which counts below 240 steps
or so: at higher ones such runs collapse, see docs/RECIPES.md."""
HOW = ("workers", "checkpoint_minutes", "tracker")
"""Fields that change how a run goes about, not what it ends in; a resumed run may change them."""
LATER = ("abstain_at", "class_weights", "cutmix", "loss", "max_length", "mixup", "sampling")
"""Fields that came when results were there already: None is what those had, and stays out of a run's identity."""
READ_ONLY = ("rule.form",)
"""Fields that recipes in files may have set, but nobody can choose any more: they get no option."""
RETIRED = ("form_lr", "tensorboard")
"""Fields that files of older versions have and that decide nothing any more: they are passed over."""


@dataclass(frozen=True)
class Augment:
    """What may happen to a training image.

    >>> Augment(flip=True)
    Augment(shift=0.125, flip=True, crop=1.0, policy='none', border='auto')
    """

    shift: float = 0.125
    """Largest random shift, as a fraction of the image's side. 0 turns it off."""
    flip: bool = False
    """Mirror half of the images left to right; wrong for letters, digits and signs, so off unless asked for."""
    crop: float = 1.0
    """Smallest area, as a fraction, of a random square crop that is resized back; 1 turns it off."""
    policy: Literal["none", "trivial", "rand"] = "none"
    """An automatic policy of torchvision: TrivialAugmentWide or RandAugment. They include colour and shear."""
    border: Literal["auto", "mirror", "plain"] = "auto"
    """What fills the gap that a shift leaves: the image's mirror image, or the colour that the network sees as 0. auto
    is plain for fewer than 500 training images without flip, unless their ground is blank; else mirror."""

    def __post_init__(self) -> None:
        check_number("shift", self.shift, lambda v: 0 <= v < 1, "a fraction from 0 to below 1")
        check_number("crop", self.crop, lambda v: 0 < v <= 1, "a fraction above 0, at most 1")
        _check_types(self)

    def source_side(self, size: int) -> int:
        """Return the side that images are kept at, so that a crop has more pixels than it needs."""
        return size if self.crop == 1 else round(size * 1.25)


@dataclass(frozen=True)
class CommonOptions:
    """Training: what is trained, on which images, for how long."""

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
    """1.0 squeezes the whole image into the square; below, that part of its shorter side is cut from the centre."""
    max_length: int | None = None
    """Maximum tokens per text, by default as many as the backbone takes. A high limit does not slow down short
    texts."""
    augment: Augment = field(default_factory=Augment)
    """What may happen to a training image."""
    sampling: str | None = None
    """balanced: draw every class equally often, however few its images; by default every image once an epoch."""
    mixup: float | None = None
    """Blend training images in pairs, with weights drawn from Beta(A, A), such as 0.2; for classes of whole images."""
    cutmix: float | None = None
    """Paste in a part of another training image, its share drawn from Beta(A, A), such as 1; with mixup, half the
    steps."""
    tune: bool = False
    """Choose the rate, and for masks the start, on val first: each gets a share of the run's steps, 480 or more."""
    patience: int | None = None
    """Stop after this many epochs without a better val accuracy; by default never."""
    abstain_at: str | None = None
    """Mark answers that are not sure enough: accuracy=0.98, so that the others are right that often on val, or
    coverage=0.95, so that so many are given. For classes of whole images."""
    seed: int = 0
    """Decides the head's start, the order of the images, augmentation and dropout."""


@dataclass(frozen=True)
class TaskOptions:
    """Methods masks, head and lora: a head and, if asked, normalisation of the task's own."""

    head_lr: float = HEAD_LR
    """Peak learning rate of the classifier, for the methods masks, head and lora."""
    norm: NormPolicy = "frozen"
    """Normalisation layers while masks, heads or adapters train: frozen, with the task's own scale and shift
    (affine), or with its own batch statistics as well (trained)."""
    norm_lr: float = HEAD_LR
    """Peak learning rate of normalisation layers, where masks or adapters train them too."""
    select: tuple[str, ...] | None = None
    """Names, globs or 're:' patterns of the weights to mask; by default those of convolutions and linear layers
    except the classifier's."""


@dataclass(frozen=True)
class MaskOptions:
    """Method masks: how masks are learned."""

    mask_lr: float | None = None
    """Peak learning rate of the mask scores (Adam); by default what follows from the number of steps."""
    mask_rate: float = 1.0
    """Factor of the derived mask rate: above 1 more weights are masked out, below fewer; not with mask_lr."""
    rule: MaskRule = field(default_factory=MaskRule)
    """How scores become a mask."""
    init: ScoreInit = field(default_factory=ScoreInit)
    """Where scores start."""
    grad_scale: GradScale = "none"
    """Divide a score's gradient by nothing, the layer's mean |W|, or each |W|."""
    regularizers: tuple[Regularizer, ...] = ()
    """Terms added to the scores' gradient."""


@dataclass(frozen=True)
class FinetuneOptions:
    """Method finetune: how a full copy of the network is trained."""

    finetune_lr: float = 1e-3
    """Peak learning rate of all weights in the method finetune."""
    finetune_optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd: with momentum 0.9, as the paper's fine-tuning has it (rate 1e-3, schedule step, 30 epochs)."""
    finetune_norm: Literal["frozen", "trained"] = "trained"
    """Normalisation layers in the method finetune."""


@dataclass(frozen=True)
class LoraOptions:
    """Method lora: how low-rank adapters are trained."""

    lora_rank: int | None = None
    """Rank of the method lora; by default the largest whose adapters fit into lora_bytes."""
    lora_bytes: int | None = None
    """Bytes that LoRA's adapters may take; by default one bit a maskable weight, as the paper's masks do."""
    lora_lr: float = 5e-3
    """Peak learning rate of LoRA's adapters, whose alpha is their rank."""


@dataclass(frozen=True)
class PackNetOptions:
    """PackNet, in experiments: how weights are freed for the tasks that follow."""

    prune: float = 0.5
    """Share of the weights that a task trained which PackNet frees for the next, smallest magnitudes first."""
    prune_epochs: int | None = None
    """Epochs that PackNet trains on after it has pruned; by default half of epochs."""


@dataclass(frozen=True)
class StepOptions:
    """Optimizer steps: how each step is made, whatever the method."""

    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """cosine: warm-up, then down to 0 along a cosine; step: the paper's, a tenth from half-way on; constant."""
    warmup: float = 0.3
    """Fraction of the steps in which the learning rate rises to its peak, for the cosine schedule."""
    label_smoothing: float = 0.1
    """Share of the target probability that is spread over all classes, in cross-entropy; other losses have none."""
    loss: str | None = None
    """focal, asymmetric (several labels), huber or absolute (numbers); by default cross-entropy or squared error."""
    class_weights: str | None = None
    """balanced: rare classes, or rare labels, count as much as common ones; or a weight per class, rare=5,common=1
    (1 where none is given)."""
    weight_decay: float = 0.0
    """Decoupled weight decay of weights and classifier, as AdamW has it; with sgd, added to the gradient; scores
    never decay."""
    clip: float | None = None
    """Largest norm of the gradient; larger ones are scaled down to it."""
    accumulate: int = 1
    """Pieces a batch is cut into, to save memory; the gradient is the same except for rounding."""


@dataclass(frozen=True)
class RunOptions:
    """Speed and logs: how a run uses the machine, and what it leaves besides its result."""

    amp: Literal["auto", "no", "bf16"] = "auto"
    """Arithmetic of the forward pass: float32 (no), bfloat16, or what suits the device and the network."""
    channels_last: Literal["auto", "yes", "no"] = "auto"
    """Order of images in memory; auto: what suits the device and the network."""
    compile: bool = False
    """Compile the network first: faster steps after a start of about a minute."""
    workers: int = 2
    """Processes that decode images, where these are too many to be kept in memory."""
    checkpoint_minutes: float = 5.0
    """A checkpoint is written after every epoch, or thirty times where there are more, and in between when this many
    minutes have passed."""
    tracker: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    """Where curves go besides metrics.csv and metrics.jsonl; needs the extra of that name."""


@dataclass(frozen=True)
class Recipe(
    # The last base's fields come first.
    RunOptions,
    StepOptions,
    PackNetOptions,
    LoraOptions,
    FinetuneOptions,
    MaskOptions,
    TaskOptions,
    CommonOptions,
):
    """What to train, for how long, and how.

    >>> Recipe("head", epochs=3).epochs
    3
    """

    def __post_init__(self) -> None:
        for expected, names, good in _RANGES:
            for name in names.split():
                value = getattr(self, name)
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                unset = value is None and expected.endswith("none")
                _check(name, value, unset or (number and good(value)), expected)
        _check_types(self)
        known = self.sampling in (None, "balanced")
        _check("sampling", self.sampling, known, "'balanced', or none")
        if self.abstain_at is not None:
            AbstainAt.of(self.abstain_at)
        if self.mask_lr is not None and self.mask_rate != 1:
            raise InputError(
                f"mask_rate {self.mask_rate!r} beside mask_lr {self.mask_lr!r}: expected one of them; mask_rate is a "
                "factor of the derived rate"
            )

    def epochs_for(self, images: int) -> int:
        """Return the passes over ``images`` training images; for the default see docs/RECIPES.md.

        >>> [Recipe().epochs_for(images) for images in (32, 256, 1000, 4000, 50_000)], Recipe(epochs=3).epochs_for(256)
        ([480, 60, 26, 7, 5], 3)
        """
        steps = max(images // self.batch_size, 1)
        wanted = min(max(MOST_EPOCHS * steps, SHORTEST), LONG)
        return self.epochs or max(-(-wanted // steps), 5)

    def derived_mask_lr(self, steps: int, skill: float | None, transformer: bool) -> float:
        """Return the peak rate of the scores that follows from the run and the task, without ``mask_rate``."""
        # Starts that have no margin above the threshold get the paper's.
        even = self.init.kind in ("magnitude", "constant")
        margin = self.init.margin(self.rule.threshold) if even else MARGIN
        rate = derived_mask_lr(steps, skill, transformer, self.schedule, self.warmup, margin)
        return rate if transformer else min(rate, margin * steps / SHORT)

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
            made["augment"] = Augment(**{"border": "mirror", **made["augment"]})
            if isinstance(made["select"], list):
                made["select"] = tuple(made["select"])
            made["regularizers"] = tuple(_regularizer(r) for r in made["regularizers"])
            return Recipe(**made)
        except (KeyError, TypeError) as error:
            raise InputError(f"recipe: {error}") from error

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the result, as JSON: what makes two runs different ones."""
        found = {name: value for name, value in self.to_json().items() if name not in HOW}
        if self.augment.border == "mirror":  # as all had it before there was a choice
            del found["augment"]["border"]
        return {k: v for k, v in found.items() if k not in LATER or v is not None}


def current(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's JSON without the fields that older versions wrote and this one has no more."""
    return {key: value for key, value in values.items() if key not in RETIRED}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted name.

    >>> flat({"rule": {"kind": "binary"}})
    {'rule.kind': 'binary'}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        inside = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return found


def group_of(kind: type, name: str) -> str:
    """Return the title of the group that a field of a recipe belongs to: what its class says first.

    >>> group_of(Recipe, "mask_lr"), group_of(Recipe, "epochs")
    ('Method masks', 'Training')
    """
    owner = next(c for c in kind.__mro__ if name in inspect.get_annotations(c))
    return (owner.__doc__ or "").partition(":")[0]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _positive(value: Any) -> bool:
    return bool(0 < value < math.inf)


_RANGES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("an integer from 1", "batch_size accumulate", _whole),
    ("an integer from 1, or none", "patience lora_rank lora_bytes max_length image_size", _whole),
    (
        "an integer from 1 to 1000000, or none",
        "epochs prune_epochs",
        lambda v: _whole(v) and v <= 1_000_000,
    ),
    ("an integer from 0 to 2**63 - 1", "seed", lambda v: type(v) is int and 0 <= v < 2**63),
    ("a finite number above 0", "mask_rate head_lr norm_lr finetune_lr lora_lr", _positive),
    ("a finite number above 0, or none", "mask_lr clip mixup cutmix", _positive),
    ("a number from 0", "weight_decay checkpoint_minutes", lambda v: bool(v >= 0)),
    ("an integer from 0", "workers", lambda v: isinstance(v, int) and v >= 0),
    ("from 0 to below 1", "warmup label_smoothing prune", lambda v: bool(0 <= v < 1)),
    ("above 0, at most 1", "crop_pct", lambda v: bool(0 < v <= 1)),
)
"""What is expected of numbers, in words; of which fields; the test."""

_REGULARIZERS: dict[str, type] = {
    kind.__name__: kind for kind in (PullToKeep, TargetDensity, EntropyPrice)
}


_hints = functools.cache(typing.get_type_hints)
_TYPES: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda v: isinstance(v, bool)),
    str: ("a word", lambda v: isinstance(v, str)),
    MaskRule: ("a MaskRule", lambda v: isinstance(v, MaskRule)),
    ScoreInit: ("a ScoreInit", lambda v: isinstance(v, ScoreInit)),
    Augment: ("an Augment", lambda v: isinstance(v, Augment)),
    tuple[Regularizer, ...]: (
        "a tuple of regularizers, such as (PullToKeep(0.1),)",
        lambda v: isinstance(v, tuple) and all(isinstance(r, Regularizer) for r in v),
    ),
    str | None: ("a word, or none", lambda v: v is None or isinstance(v, str)),
    tuple[str, ...] | None: (
        "names, or none",
        lambda v: v is None or (isinstance(v, tuple) and all(isinstance(n, str) for n in v)),
    ),
}
"""What is expected of fields that are no numbers, in words, and the test, by their type."""


def _check_types(options: Augment | Recipe) -> None:
    for name, hint in _hints(typing.cast("typing.Hashable", type(options))).items():
        value = getattr(options, name)
        if get_origin(hint) is Literal:
            _check(name, value, value in get_args(hint), f"one of {', '.join(get_args(hint))}")
        elif hint in _TYPES:
            expected, good = _TYPES[hint]
            _check(name, value, good(value), expected)


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
