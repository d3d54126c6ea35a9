"""From a task file to its weights in place: read, checked, decoded; against a switch with masks in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.command import main
from benchmarks.measure import Row, Settings, compare
from benchmarks.networks import add_task, network
from piggyback import MultiTaskModel

AIM = 5.0


def rows(settings: Settings) -> list[Row]:
    """Return a row for each network; the file is in the operating system's cache."""
    return [_row(name, settings) for name in settings.networks]


def _row(name: str, settings: Settings) -> Row:
    model = MultiTaskModel(network(name, settings))
    add_task(model, "held", 0, spread=0.9)
    add_task(model, "saved", 1, spread=0.9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.safetensors"
        model.save_task("saved", path)

        def load() -> None:
            model.load_task(path, "loaded")
            model.set_task("loaded")

        def forget() -> None:
            model.set_task("held")
            model.delete_task("loaded")

        def switch() -> None:
            model.set_task("saved")
            model.set_task("held")

        pair = compare(load, switch, settings, repeats=21, after=forget)
    ratio, ours, theirs = 2 * pair.ratio, pair.ours, pair.theirs / 2
    return Row(f"file to ready {name}", ratio, AIM, 1e3 * ours, 1e3 * theirs, "ms")


if __name__ == "__main__":
    main("file_ready")
