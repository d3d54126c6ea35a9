"""Sizes in bytes."""

from __future__ import annotations

import pytest

from piggyback.errors import InputError
from piggyback.serve.options import parse_bytes


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2GiB", 2 * 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("1000000", 1_000_000),
        ("10 kb", 10_000),
        (" 3tib ", 3 * 2**40),
        ("7B", 7),
        ("0.3GB", 300_000_000),
        ("123456789012345678", 123456789012345678),
        (12, 12),
    ],
)
def test_sizes(text: str | int, wanted: int) -> None:
    assert parse_bytes(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "2 G", "-1", "1e9", "2GiBs", "1,5GB", "nan", "0", "0.1B", "٣MB", 0, -5, 1.5, True,
     None, "9" * 400],
)  # fmt: skip
def test_what_is_no_size_is_named(text: object) -> None:
    with pytest.raises(InputError, match=r"--memory .*expected .*2GiB"):
        parse_bytes(text, "--memory")  # type: ignore[arg-type]
