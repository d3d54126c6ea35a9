from __future__ import annotations

import json
from typing import Any

import pytest

from piggyback.errors import InputError
from piggyback.images.preprocessing import Preprocessing


def test_it_survives_json() -> None:
    original = Preprocessing(64, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), "bicubic", 0.875)
    assert Preprocessing.from_json(json.loads(json.dumps(original.to_json()))) == original


def test_the_defaults_are_imagenets() -> None:
    default = Preprocessing()
    assert (default.image_size, default.mean[0], default.std[2]) == (224, 0.485, 0.225)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_size", 0, "1 to 4096"),
        ("image_size", 10**9, "1 to 4096"),
        ("image_size", "64", "1 to 4096"),
        ("image_size", 64.5, "1 to 4096"),
        ("image_size", True, "1 to 4096"),
        ("mean", (0.5,), "three finite numbers"),
        ("mean", ("a", "b", "c"), "three finite numbers"),
        ("std", (0.5, 0.5, 0.0), "three positive"),
        ("std", (0.5, 0.5, float("nan")), "three finite"),
        ("interpolation", "lanczos", "expected one of nearest, bilinear, bicubic"),
        ("crop_pct", 0, r"\(0, 1\]"),
        ("crop_pct", 1.5, r"\(0, 1\]"),
    ],
)
def test_a_value_out_of_range_is_an_error(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocessing(**{field: value})
    with pytest.raises(InputError, match=message):
        Preprocessing.from_json({**Preprocessing().to_json(), field: value})


@pytest.mark.parametrize("field", list(Preprocessing().to_json()))
@pytest.mark.parametrize("value", [None, [], {}, [[]]])
def test_hostile_json_is_one_clear_error(field: str, value: Any) -> None:
    with pytest.raises(InputError):
        Preprocessing.from_json({**Preprocessing().to_json(), field: value})
    without = {k: v for k, v in Preprocessing().to_json().items() if k != field}
    with pytest.raises(InputError):
        Preprocessing.from_json(without)
