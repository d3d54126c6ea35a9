"""A part of the measurements: its rows, and the ratios that are held against aims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Row
from benchmarks.serving_traffic import Seen


@dataclass(frozen=True)
class Part:
    """What one section found; values are plain JSON."""

    section: str
    rows: Sequence[dict[str, Any]]
    checks: Sequence[Row] = ()
    about: str = ""
    """What was measured, in a line or two of Markdown."""
    on: dict[str, Any] = field(default_factory=dict)
    """The machine."""

    def write(self, out: Path) -> None:
        """Write the part into the folder ``out``, in place of what an earlier run left there."""
        out.mkdir(parents=True, exist_ok=True)
        values = {**asdict(self), "checks": [row.to_json() for row in self.checks]}
        (out / f"{self.section}.json").write_text(json.dumps(values, indent=1) + "\n")


def read(out: Path, section: str) -> Part | None:
    """Return what ``Part.write`` wrote; None where there is nothing."""
    path = out / f"{section}.json"
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    for row in values["checks"]:
        del row["meets"]  # follows from the others
    return Part(**{**values, "checks": [Row(**row) for row in values["checks"]]})


def traffic_row(**what: Any) -> dict[str, Any]:
    """Return a row of a table of traffic; a value ``seen`` is spread over columns."""
    seen: Seen = what.pop("seen")
    tiers = " / ".join(f"{100 * share:.0f}" for share in seen.tiers.values())
    return {
        **what,
        "offered/s": round(seen.offered, 1),
        "answered/s": round(seen.answered, 1),
        "p50 ms": round(seen.p50, 2),
        "p99 ms": round(seen.p99, 2),
        "batch": round(seen.batch, 2),
        "switches %": round(seen.switches, 1),
        "dense / packed / disk %": tiers,
        "refused": int(seen.refused),
        "errors": int(seen.errors),
        "RSS MiB": round(seen.rss),
        "dense MiB": round(seen.dense),
        "packed MiB": round(seen.packed),
    }
