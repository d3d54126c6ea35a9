"""Published numbers are those that were published, and nothing is made up beside them."""

from __future__ import annotations

import pytest

from piggyback.errors import InputError
from piggyback.lab.datasets import DATASETS
from piggyback.lab.experiments.decathlon import DOMAINS, decathlon_score, mean_accuracy
from piggyback.lab.experiments.published import (
    DECATHLON_MEANS,
    DECATHLON_SCORES,
    PUBLISHED,
    published,
)


@pytest.mark.parametrize(
    ("backbone", "task", "error"),
    [
        ("vgg16", "cubs", 20.75),
        ("vgg16", "sketch", 22.30),
        ("resnet50", "cars", 10.19),
        ("resnet50", "wikiart", 28.57),
        ("densenet121", "flowers", 4.91),
        ("densenet121", "sketch", 20.05),
    ],
)
def test_errors_become_accuracies(backbone: str, task: str, error: float) -> None:
    assert published("released", backbone, task, "masks") == pytest.approx(100 - error)


def test_accuracies_stay_as_they_are() -> None:
    assert published("listing", "resnet50", "cubs", "masks") == 80.5
    assert published("decathlon", "wide-resnet-28-4", "decathlon-ucf101", "masks") == 47.48


@pytest.mark.parametrize("backbone", ["VGG-16", "vgg_16", "vgg16"])
def test_names_match_in_any_writing(backbone: str) -> None:
    assert published("released", backbone, "CUBS", "masks") == 79.25


@pytest.mark.parametrize(
    "names",
    [
        ("released", "vgg16_bn", "cubs", "masks"),
        ("released", "vgg16", "imagenet", "masks"),
        ("released", "vgg16", "cubs", "finetune"),
        ("listing", "vgg16", "cubs", "masks"),
    ],
)
def test_what_was_not_published_is_none(names: tuple[str, str, str, str]) -> None:
    assert published(*names) is None


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(InputError, match=r"'realeased': expected one of released, .*'released'"):
        published("realeased", "vgg16", "cubs", "masks")


@pytest.mark.parametrize("method", ["finetune", "masks"])
def test_decathlon_rows_give_their_published_mean_and_score(method: str) -> None:
    values = PUBLISHED["decathlon"].values
    row = {domain: values["wide-resnet-28-4", domain, method] for domain in DOMAINS}
    assert round(mean_accuracy(row), 2) == DECATHLON_MEANS[method]
    assert decathlon_score(row) == pytest.approx(DECATHLON_SCORES[method], abs=3)  # rounded rows


def test_every_task_is_a_data_set() -> None:
    for table in PUBLISHED.values():
        assert {task for _, task, _ in table.values} <= set(DATASETS)
        assert all(0 < value < 100 for value in table.values.values())
