"""Published numbers, which results are put beside, and the Visual Decathlon's score.

    table        what it has                                         its source
    released     masks that the authors released                     README of github.com/arunmallya/piggyback
    listing      masks on ResNet-50                                  benchmark listing of the paper
    decathlon    fine-tuning and masks on the ten domains            the paper's Decathlon table

The paper: Mallya, Davis, Lazebnik, ECCV 2018, arXiv 1801.06519. The tables do not agree where they overlap (CUBS with
ResNet-50): the paper averages over several runs, a release has one. So a lookup names its table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from piggyback.lab.tables.rows import Mean

REFERENCE: Mapping[str, float] = MappingProxyType(
    {
        "decathlon-imagenet12": 59.87,
        "decathlon-aircraft": 60.34,
        "decathlon-cifar100": 82.12,
        "decathlon-daimlerpedcls": 92.82,
        "decathlon-dtd": 55.53,
        "decathlon-gtsrb": 97.53,
        "decathlon-vgg-flowers": 81.41,
        "decathlon-omniglot": 87.69,
        "decathlon-svhn": 96.55,
        "decathlon-ucf101": 51.20,
    }
)
"""Accuracy (%) of fully fine-tuned networks on the Decathlon's ten domains, in the challenge's order."""

_WIDE = "wide-resnet-28-4"
_MASKS = (57.69, 65.29, 79.87, 96.99, 57.45, 97.27, 79.09, 87.63, 97.24, 47.48)
_ERRORS = {
    "vgg16": {"cubs": 20.75, "cars": 11.78, "flowers": 6.93, "wikiart": 29.80, "sketch": 22.30},
    "resnet50": {"cubs": 18.23, "cars": 10.19, "flowers": 4.77, "wikiart": 28.57, "sketch": 19.75},
    "densenet121": {
        "cubs": 19.24, "cars": 10.62, "flowers": 4.91, "wikiart": 29.33, "sketch": 20.05,
    },
}  # fmt: skip
_LISTING = {
    "cubs": 80.5,
    "flowers": 94.77,
    "imagenet": 76.16,
    "sketch": 79.91,
    "cars": 89.62,
    "wikiart": 71.33,
}

PUBLISHED: Mapping[str, Mapping[tuple[str, str, str], float]] = MappingProxyType(
    {
        "released": {  # which has top-1 errors
            (network, task, "masks"): round(100 - error, 2)
            for network, errors in _ERRORS.items()
            for task, error in errors.items()
        },
        "listing": {("resnet50", task, "masks"): value for task, value in _LISTING.items()},
        "decathlon": {(_WIDE, domain, "finetune"): value for domain, value in REFERENCE.items()}
        | {(_WIDE, name, "masks"): value for name, value in zip(REFERENCE, _MASKS, strict=True)},
    }
)
"""Accuracy (%) by table; then by backbone, task and method: names as manifests and data sets have them."""


def decathlon_score(accuracies: Mapping[str, float]) -> float:
    """Return the Visual Decathlon's score (Rebuffi et al. 2017), from 0 to 10,000.

        score = sum over domains of 1000 * (max(0, Emax - E) / Emax)^2

    E is the domain's test error, Emax twice that of ``REFERENCE``; ``accuracies`` are in percent by domain. Rounded to
    two decimals they leave the score uncertain by about 3: the errors of GTSRB and SVHN are small. Raises KeyError for
    a domain that is missing.

    >>> round(decathlon_score(REFERENCE))
    2500
    """
    total = 0.0
    for domain, reference in REFERENCE.items():
        largest, error = 2 * (100 - reference), 100 - accuracies[domain]
        total += 1000 * (max(0.0, largest - error) / largest) ** 2
    return total


def decathlon_scores(means: Iterable[Mean]) -> dict[tuple[str, str], float]:
    """Return the score of each (backbone, label) that has all ten domains, of means over seeds.

    >>> decathlon_scores([])
    {}
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for mean in means:
        found.setdefault((mean.backbone, mean.label), {})[mean.task] = mean.accuracy
    return {
        line: decathlon_score(accuracies)
        for line, accuracies in found.items()
        if accuracies.keys() >= REFERENCE.keys()
    }
