"""What serving is measured on: a backbone, many tasks made from one, engines over them, and processes apart."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.networks import add_task
from piggyback import MultiTaskModel, PackedMask, Task
from piggyback.network.backbone import Backbone
from piggyback.serve.engine import Engine
from piggyback.serve.options import EngineOptions
from piggyback.taskfile.file import load_file, save
from piggyback.taskfile.header import read_header
from piggyback.zoo.load import load_backbone

FLIPPED = 0.01
"""Of a mask's bits, in each task made from another."""
INPUTS = 16
"""Different images in the traffic."""

T = TypeVar("T")


@dataclass(frozen=True)
class Bench:
    """What to measure, and how long; it goes to other processes as it is."""

    work: Path
    """Where task files are kept, for the next run too."""
    quick: bool = False
    """Toy sizes: shows that it runs."""
    backbone: str = "efficientnet_lite0"
    size: int = 64
    """Side of the images, in pixels."""
    task: Path | None = None
    """A trained task to make others from; None: one with random masks."""
    memory: str = "2GiB"
    device: str = "cpu"
    seconds: float = 3.0
    """Of each measurement."""
    settle: float = 0.7
    """Seconds before each."""
    repeats: int = 3
    seed: int = 0
    calls: int = 1_000_000
    """Of the stress test."""
    evictions: int = 10_000
    bound: str = "4GiB"
    """For whole models in memory."""

    def network(self) -> Backbone:
        """Return the backbone, pretrained but in quick mode."""
        if self.task is not None:
            info = read_header(self.task).info
            size = info.preprocessing.image_size if info.preprocessing else self.size
            return load_backbone(info.backbone.source, image_size=size)
        if self.quick:
            torch.manual_seed(self.seed)
            return load_backbone("timm:test_resnet", pretrained=False, image_size=32)
        return load_backbone(self.backbone, image_size=self.size)

    def side(self, network: Backbone) -> int:
        """Return the side of the images that the network sees, in pixels."""
        return network.preprocessing.image_size if network.preprocessing else self.size

    def counts(self) -> tuple[int, ...]:
        """Return the numbers of tasks to measure with."""
        return (1, 3, 6) if self.quick else (1, 10, 100, 1000)

    def many(self) -> int:
        """Return the number of tasks that comparisons are made with."""
        return 6 if self.quick else 100


def names(count: int) -> list[str]:
    """Return the names of the tasks that ``folder`` makes.

    >>> names(2)
    ['t0000', 't0001']
    """
    return [f"t{i:04d}" for i in range(count)]


def folder(bench: Bench, count: int) -> Path:
    """Return a folder with ``count`` task files; what earlier runs made is used again."""
    base = _base(bench)
    key = hashlib.sha256(base + f"{bench.seed} {FLIPPED}".encode()).hexdigest()[:12]
    pool = bench.work / f"made-{key}"
    pool.mkdir(parents=True, exist_ok=True)
    there = pool / "base"
    there.write_bytes(base)
    missing = [i for i in range(count) if not _file(pool, i).exists()]
    if missing:
        cores = os.cpu_count() or 1
        parts = [missing[i::cores] for i in range(cores)]
        with _processes(cores) as processes:
            list(processes.map(_make, [there] * cores, parts, [bench.seed] * cores))
    found = bench.work / f"tasks-{key}-{count}"
    found.mkdir(exist_ok=True)
    for i in range(count):
        if not _file(found, i).exists():
            os.link(_file(pool, i), _file(found, i))
    return found


def first_task(bench: Bench) -> Task:
    """Return the task that others are made from."""
    return load_file(_file(folder(bench, 1), 0))


def flipped(task: Task, share: float, seed: int) -> Task:
    """Return ``task`` with ``share`` of each mask's bits flipped at random."""
    rng = np.random.default_rng(seed)
    masks = {}
    for name, mask in task.masks.items():
        at = rng.choice(mask.numel, round(share * mask.numel), replace=False)
        keep = mask.keep.numpy().copy()
        np.bitwise_xor.at(keep, at // 8, (1 << (at % 8)).astype(np.uint8))
        kept = torch.from_numpy(keep)
        negative = None if mask.negative is None else mask.negative & kept
        masks[name] = PackedMask(mask.shape, kept, negative)
    return Task(task.name, masks, task.head, task.norm, task.info, task.coefficients)


def engine_of(bench: Bench, tasks: Path, memory: str | int | None = None, **options: Any) -> Engine:
    """Return an engine over a folder of tasks; nothing watches the folder."""
    made = EngineOptions(**{"watch_s": 0.0, "device": bench.device, **options})
    return Engine(bench.network(), tasks, memory or bench.memory, made)


@dataclass(frozen=True)
class Sizes:
    """What an engine's parts take, in bytes, and how many workers it has."""

    live: int
    """A live copy."""
    packed: int
    """A packed task."""
    workers: int

    def room(self, packed: int, workers: int | None = None) -> int:
        """Return a budget for a live copy a worker and about so many packed tasks."""
        return self.live * (workers or self.workers) + packed * self.packed + self.packed // 2


def sizes(engine: Engine, x: Tensor) -> Sizes:
    """Return the sizes of an engine that was just started; a task is asked."""
    name = engine.tasks()[0].name
    live, workers = engine.stats().bytes["dense"], engine.options.division()[0]
    engine.predict(x, name)
    return Sizes(live // workers, engine.task(name).memory_bytes, workers)


def bring(engine: Engine, wanted: Sequence[str], x: Tensor) -> None:
    """Ask every task once, so that it is in memory as far as there is room."""
    for start in range(0, len(wanted), 256):
        for future in [engine.submit(x, name) for name in wanted[start : start + 256]]:
            future.result(600)


def inputs(bench: Bench, side: int) -> list[Tensor]:
    """Return images as the network sees them, random, float32 (3, side, side)."""
    generator = torch.Generator().manual_seed(bench.seed)
    return list(torch.randn(INPUTS, 3, side, side, generator=generator))


def jpegs(bench: Bench, side: int) -> list[bytes]:
    """Return JPEG files of smooth random pictures, twice as large as the network sees them."""
    rng = np.random.default_rng(bench.seed)
    found = []
    for _ in range(INPUTS):
        rough = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        data = io.BytesIO()
        rough.resize((2 * side, 2 * side), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
        found.append(data.getvalue())
    return found


def rss() -> int:
    """Return the bytes of memory that this process has now, by Linux's account."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def cpu_seconds(pid: int | str = "self") -> float:
    """Return the seconds of processor time that a process took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """Return ``function(*arguments)``, run in a new process: its memory is its own."""
    with _processes(1) as process:
        job: Future[T] = process.submit(function, *arguments)
        return job.result()


def say(line: str) -> None:
    """Tell how far things are."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _base(bench: Bench) -> bytes:
    if bench.task is not None:
        return bench.task.read_bytes()
    name = "quick" if bench.quick else bench.backbone.replace("/", "-").replace(":", "-")
    kept = bench.work / f"base-{name}-{bench.size}-{bench.seed}.safetensors"
    if not kept.exists():
        bench.work.mkdir(parents=True, exist_ok=True)
        model = MultiTaskModel(bench.network())
        kept.write_bytes(save(add_task(model, "base", bench.seed, spread=0.9)))
    return kept.read_bytes()


def _make(base: Path, numbers: Sequence[int], seed: int) -> None:
    torch.set_num_threads(1)
    task = load_file(base)
    for i in numbers:
        made = flipped(task, FLIPPED, seed * 100_003 + i).renamed(f"t{i:04d}")
        part = base.parent / f"{i}.part"
        part.write_bytes(save(made))
        part.replace(_file(base.parent, i))


def _file(place: Path, number: int) -> Path:
    return place / f"t{number:04d}.safetensors"


def _processes(number: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn"))
