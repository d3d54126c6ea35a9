"""Published numbers are those that were published; the Decathlon's score agrees with its published rows."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

from piggyback.errors import InputError
from piggyback.lab.datasets import DATASETS
from piggyback.lab.experiments.published import (
    PUBLISHED,
    REFERENCE,
    decathlon_score,
    decathlon_scores,
    published,
)
from piggyback.lab.tables.rows import Row, means

FINETUNED = (59.87, 60.34, 82.12, 92.82, 55.53, 97.53, 81.41, 87.69, 96.55, 51.20)
PIGGYBACK = (57.69, 65.29, 79.87, 96.99, 57.45, 97.27, 79.09, 87.63, 97.24, 47.48)
DOMAINS = [name for name in DATASETS if name.startswith("decathlon-")]


def by_domain(values: tuple[float, ...]) -> dict[str, float]:
    return dict(zip(DOMAINS, values, strict=True))


@pytest.mark.parametrize(
    ("names", "accuracy"),
    [
        (("released", "vgg16", "cubs", "masks"), 79.25),
        (("released", "VGG-16", "CUBS", "masks"), 79.25),  # names match in any writing
        (("released", "vgg_16", "sketch", "masks"), 77.70),
        (("released", "resnet50", "cars", "masks"), 89.81),
        (("released", "resnet50", "wikiart", "masks"), 71.43),
        (("released", "densenet121", "flowers", "masks"), 95.09),
        (("listing", "resnet50", "cubs", "masks"), 80.5),
        (("decathlon", "wide-resnet-28-4", "decathlon-ucf101", "masks"), 47.48),
        (("released", "vgg16_bn", "cubs", "masks"), None),
        (("released", "vgg16", "imagenet", "masks"), None),
        (("released", "vgg16", "cubs", "finetune"), None),
        (("listing", "vgg16", "cubs", "masks"), None),
    ],
)
def test_a_number_is_what_was_published_or_none(
    names: tuple[str, str, str, str], accuracy: float | None
) -> None:
    assert published(*names) == accuracy


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(InputError, match=r"'realeased': expected one of released, .*'released'"):
        published("realeased", "vgg16", "cubs", "masks")


def test_every_task_is_a_data_set() -> None:
    for table in PUBLISHED.values():
        assert {task for _, task, _ in table} <= set(DATASETS)
        assert all(0 < value < 100 for value in table.values())
    assert list(REFERENCE) == DOMAINS


def test_the_published_rows_give_their_published_means_and_scores() -> None:
    for method, row in (("finetune", FINETUNED), ("masks", PIGGYBACK)):
        for domain, value in by_domain(row).items():
            assert published("decathlon", "wide-resnet-28-4", domain, method) == value
    assert round(mean(FINETUNED), 2) == 76.51
    assert round(mean(PIGGYBACK), 2) == 76.60
    assert decathlon_score(by_domain(FINETUNED)) == pytest.approx(2500)
    # The published 2838 is of accuracies that were not yet rounded; those printed give 2840.
    row = by_domain(PIGGYBACK)
    assert decathlon_score(row) == pytest.approx(2840.225, abs=1e-3)
    lowest, highest = (
        decathlon_score({domain: value + half for domain, value in row.items()})
        for half in (-0.005, 0.005)
    )
    assert lowest < 2838 < highest
    assert highest - lowest < 7  # so that other formulas would not pass
    assert decathlon_score(dict(reversed(row.items()))) == decathlon_score(row)


def test_a_domain_gives_from_nothing_to_a_thousand() -> None:
    base = by_domain(FINETUNED)
    for domain in DOMAINS:
        rest = decathlon_score(base) - 250
        assert decathlon_score(base | {domain: 100.0}) == pytest.approx(rest + 1000)
        twice_the_error = 100 - 2 * (100 - base[domain])
        for accuracy in (max(0.0, twice_the_error), 0.0):
            assert decathlon_score(base | {domain: accuracy}) == pytest.approx(rest)


def test_another_reference_moves_the_score() -> None:
    easy = dict.fromkeys(DOMAINS, 50.0)  # Emax is 100, so each domain gives 1000 * accuracy^2
    assert decathlon_score(dict.fromkeys(DOMAINS, 80.0), easy) == pytest.approx(6400)


def test_wrong_values_are_refused() -> None:
    row = by_domain(PIGGYBACK)
    lacking = {name: value for name, value in row.items() if name != "decathlon-dtd"}
    for values, message in (
        (row | {"decathlon-svnh": 9.0}, "'decathlon-svnh'; .* 'decathlon-svhn'"),
        (row | {"decathlon-svhn": 100.5}, "decathlon-svhn: .* from 0 to 100, found 100.5"),
        (row | {"decathlon-svhn": float("nan")}, "decathlon-svhn: .* found nan"),
        (lacking, "all ten domains.*decathlon-dtd"),
    ):
        with pytest.raises(InputError, match=f"^accuracies: .*{message}"):
            decathlon_score(values)
    with pytest.raises(InputError, match=r"reference: .*decathlon-dtd"):
        decathlon_score(REFERENCE, lacking)
    with pytest.raises(InputError, match=r"reference: decathlon-dtd: expected .* below 100"):
        decathlon_score(REFERENCE, {**REFERENCE, "decathlon-dtd": 100.0})


def test_lines_with_all_domains_are_scored() -> None:
    rows = [
        Row("wide", domain, "masks", "masks", seed, value + (-1) ** seed, 50.0, 0.9, 1, 1.0)
        for seed in (0, 1)
        for domain, value in by_domain(PIGGYBACK).items()
    ]
    rows += [replace(row, label="short") for row in rows if row.task != "decathlon-dtd"]
    scores = decathlon_scores(means(rows))
    assert {key: round(value) for key, value in scores.items()} == {("wide", "masks"): 2840}
