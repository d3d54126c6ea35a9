"""Where a command computes: the options ``--threads`` and ``--device``, and how many cores there are for it."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from piggyback.cli.screen import notes
from piggyback.errors import InputError

ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Cores to compute with; by default all available ones."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Such as cpu or cuda:1; by default a GPU, if there is one."),
]


def compute_with(threads: int | None, device: str | None = None) -> None:
    """Let torch compute with ``threads`` on ``device``; raises InputError for what this machine does not have.

    Without ``threads`` torch counts the cores itself, but sees no container's quota: threads beyond it are stopped in
    the middle of their work while others wait for them.
    """
    cores, quota = os.cpu_count() or 1, cpu_quota()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    usable = allowed if quota is None else min(allowed, quota)
    if threads is not None and threads > cores:
        raise InputError(f"--threads {threads}: expected at most {cores}, this machine's cores")
    if threads is not None and threads > usable:
        notes().print(
            f"warning: --threads {threads}: this process may use {usable} of {cores} cores; more threads are slower"
        )
    elif threads is None and usable < allowed and "OMP_NUM_THREADS" not in os.environ:
        notes().print(
            f"computing with {usable} of {allowed} cores, the CPU quota here; --threads says otherwise"
        )
        threads = usable
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if device is not None:
        from piggyback.network.hardware import check_device

        check_device(device, "--device")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"--device {device}: every process of accelerate launch has its own; leave it out"
            )
        os.environ["ACCELERATE_TORCH_DEVICE"] = device  # also for processes that this one starts


def cpu_quota(root: Path = Path("/")) -> int | None:
    """Return how many cores this process's control groups let it use, rounded up; None without a limit.

    Version 2 has ``cpu.max``, version 1 ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``, in microseconds; a group is
    bound by those above it. See https://docs.kernel.org/admin-guide/cgroup-v2.html.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return None
    found: list[int] = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        group = PurePosixPath(path)
        for each in (group, *group.parents):  # in a container the path may be that outside it
            try:
                folder = mounted / str(each).lstrip("/")
                quota, period = " ".join((folder / name).read_text() for name in names).split()
            except OSError:
                continue
            if quota not in ("max", "-1"):
                found.append(-(-int(quota) // int(period)))
    return min(found, default=None)
