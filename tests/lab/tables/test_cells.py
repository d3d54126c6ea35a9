"""Cells survive a file, and their means count each seed once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from piggyback.errors import InputError
from piggyback.lab.tables.cells import CellRow, FailedCell, cell_means
from support.experiment_cells import cells


def test_cells_survive_json() -> None:
    for row in cells():
        assert CellRow.from_json(json.loads(json.dumps(row.to_json()))) == row
    lost = FailedCell("lite0", "signs", "lora", "lora", 0, "out of memory")
    assert FailedCell.from_json(json.loads(json.dumps(lost.to_json()))) == lost


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acuracy": 3.0}, r"unknown key 'acuracy'; did you mean 'accuracy'"),
        ({"accuracy": float("nan")}, "accuracy: expected a finite number, found nan"),
        ({"accuracy": None}, "accuracy: expected a finite number, found None"),
        ({"bytes": 12.5}, "bytes: expected an integer from 0, found 12.5"),
        ({"seed": True}, "seed: expected an integer from 0, found True"),
        ({"label": 3}, "label: expected a text, found 3"),
        ({"chosen": []}, r"chosen: expected an object, found \[\]"),
    ],
)
def test_other_content_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CellRow.from_json(cells()[0].to_json() | change)


@pytest.mark.parametrize("values", [None, [], "row", 3])
def test_other_json_is_refused(values: object) -> None:
    with pytest.raises(InputError, match="cell: expected an object with backbone, task"):
        CellRow.from_json(values)


def test_a_missing_field_is_named() -> None:
    values = cells()[0].to_json()
    del values["bytes"]
    with pytest.raises(InputError, match="cell: expected 'bytes', found only backbone, task"):
        CellRow.from_json(values)


def test_means_over_seeds() -> None:
    found = {(cell.task, cell.label): cell for cell in cell_means(cells())}
    masks = found["signs", "masks ternary"]
    assert (masks.method, masks.backbone) == ("masks", "lite0")
    assert (masks.accuracy, masks.seeds) == (90.0, 2)
    assert masks.spread == pytest.approx(2**0.5)
    assert (masks.bits_per_weight, masks.density, masks.trials) == (0.6, 0.8, 3)
    assert found["signs", "head"].density is None


def test_a_seed_that_is_there_twice_is_refused() -> None:
    row = cells()[0]
    with pytest.raises(InputError, match=r"head on signs with lite0: expected each seed once"):
        cell_means([row, row])
    with pytest.raises(InputError, match=r"expected one method a label, found head, masks"):
        cell_means([row, replace(row, seed=9, method="masks")])
