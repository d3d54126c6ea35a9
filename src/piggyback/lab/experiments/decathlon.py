"""The Visual Decathlon score (Rebuffi et al. 2017): ten domains, each judged against fine-tuning.

    score = sum over domains of 1000 * (max(0, Emax - E) / Emax)^2

E is the domain's test error, Emax twice the error of a fully fine-tuned network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import mean
from types import MappingProxyType

from piggyback.errors import InputError, near_misses
from piggyback.lab.tables.cells import CellMean

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
"""Accuracy (%) of fully fine-tuned networks, which defines Emax."""

DOMAINS = tuple(REFERENCE)
"""The ten domains in the challenge's order, by their names among the data sets."""


def decathlon_score(
    accuracies: Mapping[str, float], reference: Mapping[str, float] = REFERENCE
) -> float:
    """Return the score, from 0 to 10,000, of test accuracies in percent, by domain.

    ``reference`` has the accuracies of fully fine-tuned networks. Accuracies rounded to two decimals leave the score
    uncertain by about 3: the errors of GTSRB and SVHN are small. Raises InputError for a domain that is missing or
    unknown, for an accuracy outside 0 to 100, and for a reference without errors.

    >>> round(decathlon_score(REFERENCE))
    2500
    """
    found = _checked("accuracies", accuracies)
    total = 0.0
    for domain, best in _checked("reference", reference).items():
        largest = 2 * (100 - best)  # Emax
        if largest == 0:
            raise InputError(f"reference: {domain}: expected an accuracy below 100, found {best}")
        error = 100 - found[domain]
        total += 1000 * (max(0.0, largest - error) / largest) ** 2
    return total


def mean_accuracy(accuracies: Mapping[str, float]) -> float:
    """Return the mean test accuracy (%) over the ten domains; raises InputError as the score does.

    >>> round(mean_accuracy(REFERENCE), 2)
    76.51
    """
    return mean(_checked("accuracies", accuracies).values())


def decathlon_scores(
    cells: Iterable[CellMean], reference: Mapping[str, float] = REFERENCE
) -> dict[tuple[str, str], float]:
    """Return the score of each (backbone, label) that has all ten domains, of means over seeds.

    >>> decathlon_scores([])
    {}
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for cell in cells:
        found.setdefault((cell.backbone, cell.label), {})[cell.task] = cell.accuracy
    return {
        key: decathlon_score({domain: accuracies[domain] for domain in DOMAINS}, reference)
        for key, accuracies in found.items()
        if accuracies.keys() >= set(DOMAINS)
    }


def _checked(what: str, values: Mapping[str, float]) -> dict[str, float]:
    """The values in the challenge's order."""
    for name in values:
        if name not in DOMAINS:
            raise InputError(
                f"{what}: unknown domain {name!r}{near_misses(name, DOMAINS)}; "
                f"expected {', '.join(DOMAINS)}"
            )
    for domain in DOMAINS:
        if domain not in values:
            raise InputError(
                f"{what}: expected all ten domains, found no {domain!r}{_instead(values)}"
            )
        if not 0 <= values[domain] <= 100:  # NaN is refused as well
            raise InputError(
                f"{what}: {domain}: expected percent from 0 to 100, found {values[domain]}"
            )
    return {domain: float(values[domain]) for domain in DOMAINS}


def _instead(values: Mapping[str, float]) -> str:
    return f"; found only {', '.join(values)}" if values else ""
