"""The active task's answer against the plain backbone's, and equality to the bit with a baked model."""

from __future__ import annotations

import copy

import torch

from benchmarks.command import main
from benchmarks.measure import Row, Settings, compare
from benchmarks.networks import add_task, batch, network
from piggyback import MultiTaskModel

AIM = 1.01


def rows(settings: Settings) -> list[Row]:
    """Return a row for each network; raises RuntimeError where an answer differs from the baked model's."""
    return [_row(name, settings) for name in settings.networks]


@torch.inference_mode()
def _row(name: str, settings: Settings) -> Row:
    plain = network(name, settings)
    x, _ = batch(settings, 8, 64)
    model = _model(plain)
    if not torch.equal(model(x), model.bake("task")(x)):
        raise RuntimeError(f"{name}: the task's answer is not the baked model's to the bit")
    pair = compare(lambda: model(x), lambda: plain(x), settings, repeats=51)
    note = "batch 8, 64 px; bit-equal to the baked model"
    return Row(
        f"forward {name}", pair.ratio, AIM, 1e3 * pair.ours, 1e3 * pair.theirs, "ms", note=note
    )


@torch.inference_mode(False)
def _model(plain: torch.nn.Module) -> MultiTaskModel:
    model = MultiTaskModel(copy.deepcopy(plain))
    add_task(model, "task", 0)
    return model


if __name__ == "__main__":
    main("forward")
