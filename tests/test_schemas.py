"""The JSON between servers and clients, and the errors' codes in it."""

from __future__ import annotations

import json

import pytest

from piggyback.errors import ERRORS_BY_CODE, InputError, OverloadError
from piggyback.schemas import Answer, RankedClass, Timing

WIRE = {
    "task": "signs",
    "version": "0" * 16,
    "classes": [{"class": "stop", "probability": 0.333333}],
    "confidence": 0.5,
    "tier": "dense",
    "timing_ms": {
        "prepare": 1.235, "queue": 2.0, "load": 0.0, "run": 3.0, "total": 6.0, "batch": 4,
    },
}  # fmt: skip


def test_an_answer_is_rounded_on_its_way_and_only_there() -> None:
    timing = Timing(prepare=1.23456, queue=2, load=0, run=3, total=6, batch=4)
    ranking = [RankedClass(name="stop", probability=1 / 3)]
    answer = Answer(
        task="signs", version="0" * 16, ranking=ranking, confidence=0.5, tier="dense", timing=timing
    )  # fmt: skip
    assert (answer.classes, answer.probabilities) == (("stop",), (1 / 3,))
    assert json.loads(answer.model_dump_json()) == answer.model_dump(mode="json") == WIRE
    assert Answer.model_validate(WIRE | {"of a newer server": 1}).model_dump(mode="json") == WIRE


@pytest.mark.parametrize(
    "wrong", [{"tier": "moon"}, {"classes": [{"class": "a"}]}, {"timing_ms": {}}, {"task": None}]
)
def test_what_is_no_answer_is_a_value_error(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Answer.model_validate(WIRE | wrong)


def test_each_code_is_one_class_and_has_a_status() -> None:
    assert ERRORS_BY_CODE["overload"] is OverloadError
    assert issubclass(ERRORS_BY_CODE["malformed_json"], InputError)
    assert "internal" not in ERRORS_BY_CODE
    for code, kind in ERRORS_BY_CODE.items():
        assert kind.code == code
        assert 400 <= kind.http_status <= 504
