"""Kinds of tasks: what a head's outputs mean, one object for each kind.

    source -> samples -> kind -> file -> evaluate, predict, serve, export
                          |
                          targets, outputs, losses    training
                          meter -> Score              evaluation, and the choice of the best epoch
                          answers                     prediction and serving
                          finished                    export

Nothing outside asks which kind it is: ``kind_of(info)`` gives the object, and its methods differ. This module needs no
torch, the kinds' own modules do.
"""

from __future__ import annotations

import difflib
import importlib
from operator import attrgetter
from typing import TYPE_CHECKING, cast

from piggyback.errors import InputError, check_is, near_misses
from piggyback.taskfile.task import TaskInfo

if TYPE_CHECKING:
    from piggyback.kinds.base import Kind

KINDS = {
    "classification": "piggyback.kinds.classification:Classification",
    "multilabel": "piggyback.kinds.multilabel:Multilabel",
    "regression": "piggyback.kinds.regression:Regression",
    "segmentation": "piggyback.kinds.segmentation:Segmentation",
    "tokens": "piggyback.kinds.tokens:Tokens",
}
"""Kinds by the name that task files have, as ``module:class``, imported when a task of that kind is used."""
SCORES = {
    "classification": "accuracy",
    "multilabel": "mean average precision",
    "regression": "R2",
    "segmentation": "mean IoU",
    "tokens": "span F1",
}
"""What the score of a kind is called; always in percent, higher is better."""
CARDS = {
    "segmentation": "image-segmentation",
    "regression": "image-feature-extraction",
    "tokens": "token-classification",
}
"""The pipeline tag by which the Hugging Face Hub lists a kind, where it is not image-classification."""
_FIELDS = attrgetter("classes", "units", "thresholds", "scaling", "calibration", "preprocessing")
"""What a kind takes from a task, in the order of its own fields."""


def kind_of(info: TaskInfo) -> Kind:
    """Return the kind of a task with its classes, units, thresholds and scaling; InputError for one not known.

    >>> kind_of(TaskInfo("regression", ("height",), units=("m",))).units
    ('m',)
    """
    if info.kind not in KINDS:
        raise InputError(
            f"task of kind {info.kind[:40]!r}: expected one of {', '.join(KINDS)}{near_misses(info.kind, KINDS)}; "
            "run others with MultiTaskModel"
        )
    module, _, name = KINDS[info.kind].partition(":")
    made = getattr(importlib.import_module(module), name)
    return cast("Kind", made(*_FIELDS(info)))


def check_kind(kind: str) -> None:
    """Raise InputError for one of these that is misspelt; tasks may have a kind of their own.

    >>> check_kind("multi-label")
    Traceback (most recent call last):
    piggyback.errors.InputError: kind 'multi-label': expected 'multilabel'
    """
    check_is("kind", kind, str, f"a text, such as {', '.join(KINDS)}")
    plain = "".join(filter(str.isalnum, kind.lower()))
    close = difflib.get_close_matches(plain, KINDS, n=1, cutoff=0.94)  # a letter more or less
    if close and kind not in KINDS:
        raise InputError(f"kind {kind[:40]!r}: expected {close[0]!r}")


def score_name(kind: str) -> str:
    """Return what the score of a kind is called: "accuracy" for one that is not known.

    >>> score_name("segmentation")
    'mean IoU'
    """
    return SCORES.get(kind, "accuracy")
