"""Against doing without masks: (b) load_state_dict at every switch, (c) a whole network for each task."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch
from pydantic import ByteSize
from torch import nn

from benchmarks.measure import Row
from benchmarks.serving_load import AIMS, FULL, SATURATION
from benchmarks.serving_parts import Part, traffic_row
from benchmarks.serving_plain import PlainServer, from_disk, reloading, whole
from benchmarks.serving_setup import Bench, bring, engine_of, folder, inputs, names
from benchmarks.serving_traffic import (
    KINDS,
    EngineSide,
    Kind,
    Seen,
    Side,
    capacity,
    middle,
    rounds,
)
from piggyback import MultiTaskModel
from piggyback.serve.options import parse_bytes

AIM = 10.0
B_DISK, B_MEMORY = "(b) load_state_dict from disk", "(b) load_state_dict from memory"
C = "(c) whole networks"
ENGINE = "engine"


def measure(bench: Bench) -> Part:
    """Return a row for each server and traffic, all of them offered more than the engine can answer."""
    count = bench.many()
    tasks, bound = names(count), parse_bytes(bench.bound)
    source = folder(bench, count)
    networks = _networks(bench, source, tasks)
    one = networks[tasks[0]]
    each = sum(t.numel() * t.element_size() for t in one.state_dict().values())
    states = bench.work / f"states-{source.name}"
    _save(networks, states)
    in_memory = {task: network.state_dict() for task, network in networks.items()}
    with ExitStack() as stack:
        # The same network on both sides: float32, channels_last.
        engine = stack.enter_context(engine_of(bench, source, precision="float32"))
        side = engine.task(tasks[0]).image_size or bench.size
        images = inputs(bench, side)
        bring(engine, tasks, images[0])
        sides: dict[str, Side] = {ENGINE: EngineSide(engine)}
        made = {
            f"{B_MEMORY}, grouped": PlainServer(reloading(one, in_memory.__getitem__)),
            f"{B_MEMORY}, fifo": PlainServer(reloading(one, in_memory.__getitem__), "fifo"),
            f"{B_DISK}, grouped": PlainServer(reloading(one, from_disk(states))),
            f"{B_DISK}, fifo": PlainServer(reloading(one, from_disk(states)), "fifo"),
        }
        if count * each <= bound:
            made[C] = PlainServer(whole(networks))
        for server in made.values():
            stack.callback(server.close)
        sides |= made
        rate = SATURATION * capacity(sides[ENGINE], tasks[0], images, bench.seconds)
        cases = {(name, kind): (sides[name], tasks, kind) for kind in KINDS for name in sides}
        found = rounds(bench, cases, rate, images, FULL)
        each_says, all_say, most_say = (
            ByteSize(number * each).human_readable() for number in (1, count, 1000)
        )
        about = (
            f"{count} tasks, {engine.source}, {side} px, {engine.speed}; offered {rate:.0f}/s. "
            f"A whole network takes {each_says}: {count} of them {all_say}, 1000 {most_say}; "
            f"those that do not fit into {bench.bound} are not measured."
        )
    rows = [
        traffic_row(server=name, traffic=kind, seen=middle(s)) for (name, kind), s in found.items()
    ]
    rows.sort(key=lambda row: (row["traffic"], list(sides).index(row["server"])))
    return Part("against", rows, _checks(found, list(made)), about)


def _checks(found: dict[tuple[str, Kind], list[Seen]], others: list[str]) -> list[Row]:
    rows = []
    for kind in KINDS:
        ours = [seen.answered for seen in found[ENGINE, kind]]
        for other in others:
            theirs = [max(seen.answered, 1e-9) for seen in found[other, kind]]
            ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
            aim = AIMS[kind] if other == C else AIM
            name = f"engine / {other}, {kind}"
            rows.append(
                Row(name, ratio, aim, median(ours), median(theirs), "answers/s", at_least=True)
            )
    return rows


def _networks(bench: Bench, source: Path, tasks: list[str]) -> dict[str, nn.Module]:
    """Plain networks with a task's weights written into them, as fine-tuning leaves them."""
    model = MultiTaskModel(bench.network())
    found = {}
    for task in tasks:
        model.load_task(source / f"{task}.safetensors")
        network = model.bake(task).eval().requires_grad_(False)
        found[task] = network.to(memory_format=torch.channels_last)
        model.delete_task(task)
    return found


def _save(networks: dict[str, nn.Module], place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for task, network in networks.items():
        torch.save(network.state_dict(), place / f"{task}.pt")
