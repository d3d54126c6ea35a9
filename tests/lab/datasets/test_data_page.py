"""docs/DATA.md says what the registry says."""

from __future__ import annotations

from pathlib import Path

from piggyback.lab.datasets import DATASETS, DatasetInfo

PAGE = Path(__file__).resolve().parents[3] / "docs" / "DATA.md"
HEADER = [
    "| set | what | kind | classes | train | val | test | prepared | folder, and what lies in it | get | licence |",
    "|---|---|---|---:|---:|---:|---:|---|---|---|---|",
]


def row(info: DatasetInfo) -> str:
    """The page's line about a set."""
    counts = [f"{info.counts[s]:,}" if s in info.counts else "" for s in ("train", "val", "test")]
    prepared = (
        f"{info.image_size} pixels, crop {info.crop_pct:.3g}, {'flip' if info.flip else 'no flip'}"
    )
    folders = " or ".join(f"`{place}/`" for place in info.places)
    cells = [
        *(f"`{info.name}`", info.title, info.kind, f"{info.classes:,}", *counts, prepared),
        *(f"{folders}: `{info.layout}`", info.how_to_get, info.licence),
    ]
    assert not any("|" in cell or "\n" in cell for cell in cells)
    return f"| {' | '.join(cells)} |"


def test_the_table_is_the_registry() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert lines == [*HEADER, *map(row, DATASETS.values())]
