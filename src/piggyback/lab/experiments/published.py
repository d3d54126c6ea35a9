"""Published numbers, each with its source; results are put beside them.

    table        what it has
    released     top-1 error of the masks the authors released: their README
    listing      accuracy of masks on ResNet-50, as the benchmark listing of the paper gives it
    decathlon    accuracy on the ten domains, fine-tuned and with masks: the paper's Decathlon table

The three do not agree where they overlap (CUBS with ResNet-50): the paper averages over several runs, a release has
one. So a lookup names its table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from piggyback.errors import InputError, near_misses
from piggyback.lab.experiments.decathlon import DOMAINS, REFERENCE

PAPER = "Mallya, Davis, Lazebnik, ECCV 2018, arXiv 1801.06519"


@dataclass(frozen=True)
class PublishedTable:
    """Numbers of one source, in the measure they were published in."""

    source: str
    measure: Literal["accuracy", "error"]
    """What ``values`` hold, in percent."""
    values: Mapping[tuple[str, str, str], float]
    """By backbone, task and method: names as manifests and data sets have them."""

    def accuracy(self, backbone: str, task: str, method: str) -> float | None:
        """Return the accuracy in percent, or None where it was not published."""
        key = tuple(map(_plain, (backbone, task, method)))
        for known, value in self.values.items():
            if tuple(map(_plain, known)) == key:
                return value if self.measure == "accuracy" else round(100 - value, 2)
        return None


def published(table: str, backbone: str, task: str, method: str) -> float | None:
    """Return the published accuracy (%) of a cell, or None where there is none.

    ``method`` is ``masks`` or ``finetune``. Names match in any case, with or without hyphens. Raises InputError for an
    unknown table.

    >>> published("released", "vgg16", "cubs", "masks")
    79.25
    >>> published("released", "vgg16", "cubs", "lora") is None
    True
    """
    if table not in PUBLISHED:
        raise InputError(
            f"published numbers {table!r}: expected one of {', '.join(PUBLISHED)}"
            f"{near_misses(table, PUBLISHED)}"
        )
    return PUBLISHED[table].accuracy(backbone, task, method)


_NETWORKS = ("vgg16", "resnet50", "densenet121")
_RELEASED = {
    "cubs": (20.75, 18.23, 19.24),
    "cars": (11.78, 10.19, 10.62),
    "flowers": (6.93, 4.77, 4.91),
    "wikiart": (29.80, 28.57, 29.33),
    "sketch": (22.30, 19.75, 20.05),
}
_LISTING = {
    "cubs": 80.5,
    "flowers": 94.77,
    "imagenet": 76.16,
    "sketch": 79.91,
    "cars": 89.62,
    "wikiart": 71.33,
}
_WIDE = "wide-resnet-28-4"
_MASKS = (57.69, 65.29, 79.87, 96.99, 57.45, 97.27, 79.09, 87.63, 97.24, 47.48)

PUBLISHED: Mapping[str, PublishedTable] = MappingProxyType(
    {
        "released": PublishedTable(
            "README of the authors' code, github.com/arunmallya/piggyback",
            "error",
            {
                (network, task, "masks"): error
                for task, errors in _RELEASED.items()
                for network, error in zip(_NETWORKS, errors, strict=True)
            },
        ),
        "listing": PublishedTable(
            f"benchmark listing of {PAPER}",
            "accuracy",
            {("resnet50", task, "masks"): accuracy for task, accuracy in _LISTING.items()},
        ),
        "decathlon": PublishedTable(
            PAPER,
            "accuracy",
            {(_WIDE, domain, "finetune"): value for domain, value in REFERENCE.items()}
            | {(_WIDE, domain, "masks"): v for domain, v in zip(DOMAINS, _MASKS, strict=True)},
        ),
    }
)
"""Tables by name."""

DECATHLON_MEANS: Mapping[str, float] = MappingProxyType({"finetune": 76.51, "masks": 76.60})
"""Published mean accuracy (%) over the ten domains, by method."""
DECATHLON_SCORES: Mapping[str, int] = MappingProxyType({"finetune": 2500, "masks": 2838})
"""Published score, by method; that of masks is of accuracies not yet rounded, the printed ones give 2840."""


def _plain(name: str) -> str:
    """A name without case and punctuation: VGG-16 is vgg16."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
