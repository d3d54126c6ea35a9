"""Changing the task, masks in memory, against copying the same weights with ``copy_``."""

from __future__ import annotations

import torch

from benchmarks.command import main
from benchmarks.measure import Row, Settings, compare
from benchmarks.networks import add_task, network
from piggyback import MultiTaskModel

AIM = 2.5
TASKS = ("a", "b")


def rows(settings: Settings) -> list[Row]:
    """Return a row for each network."""
    return [_row(name, settings) for name in settings.networks]


def _row(name: str, settings: Settings) -> Row:
    model = MultiTaskModel(network(name, settings))
    copies = {}
    for seed, task in enumerate(TASKS):
        add_task(model, task, seed)
        copies[task] = [live.detach().clone() for live in _live(model)]
    live = _live(model)

    @torch.no_grad()
    def copy() -> None:
        for task in TASKS:
            for weight, value in zip(live, copies[task], strict=True):
                weight.copy_(value)

    def switch() -> None:
        for task in TASKS:
            model.set_task(task)

    pair = compare(switch, copy, settings, repeats=51)
    switch()
    if not all(map(torch.equal, live, copies[TASKS[-1]])):
        raise RuntimeError(f"{name}: a switch wrote other weights than were copied")
    return Row(f"switch {name}", pair.ratio, AIM, 500 * pair.ours, 500 * pair.theirs, "ms/switch")


def _live(model: MultiTaskModel) -> list[torch.Tensor]:
    params = dict(model.backbone.named_parameters())
    return [params[name] for name in model.masked_names]


if __name__ == "__main__":
    main("switch")
