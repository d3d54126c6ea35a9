"""Rows survive a file, and their means count each seed once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from piggyback.errors import InputError
from piggyback.lab.tables.rows import Row, means
from support.experiment_rows import rows


def test_rows_survive_json():
    for row in rows():
        assert Row(**json.loads(json.dumps(row.to_json()))) == row
    older = rows()[0].to_json()
    del older["verdict"], older["measure"]  # which rows of before 2026-11 do not have
    assert Row(**older) == rows()[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acuracy": 3.0}, "acuracy"),
        ({"accuracy": float("nan")}, "accuracy"),
        ({"accuracy": None}, "accuracy"),
        ({"bytes": 12.5}, "bytes"),
        ({"seed": -1}, "seed"),
        ({"chosen": 3}, "chosen"),
    ],
)
def test_other_content_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Row(**rows()[0].to_json() | change)


def test_means_over_seeds():
    found = {(mean.task, mean.label): mean for mean in means(rows())}
    masks = found["signs", "masks ternary"]
    assert (masks.method, masks.backbone) == ("masks", "lite0")
    assert (masks.accuracy, masks.seeds) == (90.0, 2)
    assert masks.spread == pytest.approx(2**0.5)
    assert (masks.bits_per_weight, masks.density, masks.trials) == (0.6, 0.8, 3)
    assert found["signs", "head"].density is None
    assert [task for task, _ in found] == ["signs"] * 5 + ["letters"] * 5


def test_a_seed_that_appears_twice_is_refused():
    row = rows()[0]
    with pytest.raises(InputError, match="head on signs with lite0: expected each seed once"):
        means([row, row])
    with pytest.raises(InputError, match="one method per label, found head, masks"):
        means([row, replace(row, seed=9, method="masks")])
