"""``piggyback serve``: answers over HTTP for every task file in a folder."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piggyback.cli.flags import CheckpointOption, HeadOption, TokenFileOption
from piggyback.cli.loading import backbone_of, spec_of
from piggyback.cli.screen import notes
from piggyback.cli.tasks_dir import first_task, no_tasks
from piggyback.errors import InputError
from piggyback.names import read_token
from piggyback.network.backbone import Backbone
from piggyback.serve.options import EngineOptions, parse_bytes
from piggyback.taskfile.header import TaskHeader
from piggyback.zoo.load import load_backbone

if TYPE_CHECKING:
    from piggyback.serve.engine import Engine
    from piggyback.serve.http.limits import Limits


class Precision(enum.StrEnum):
    """Of the network's arithmetic."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class LogLevel(enum.StrEnum):
    """What is logged at least."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def run(
    tasks: Annotated[
        str,
        typer.Argument(
            metavar="TASKS_DIR",
            help="Folder with task files, or a URL such as s3://bucket/tasks.",
        ),
    ],
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", metavar="SPEC", help="By default the one that the first file names."
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    head: HeadOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_file: TokenFileOption = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="For tasks, above one network, such as 512MiB.")
    ] = "2GiB",
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda:1; by default a GPU if there is one.")
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="Of the network; auto takes what is faster.")
    ] = Precision.AUTO,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the network: the first batches take minutes, later ones are faster.",
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that run the network; by default as fits.")
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Images answered together.")
    ] = EngineOptions.max_batch,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Images that may wait; then 429.")
    ] = EngineOptions.max_queue,
    max_body: Annotated[
        str, typer.Option(metavar="SIZE", help="Of a request with images; then 413.")
    ] = "16MiB",
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Of one image; then 413.")
    ] = EngineOptions.max_pixels,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds until an answer; then 504.")
    ] = 30.0,
    log_level: Annotated[
        LogLevel, typer.Option(help="From info on there is a line a request.")
    ] = LogLevel.INFO,
    ray: Annotated[
        bool, typer.Option("--ray", help="Several processes, by Ray Serve on this machine.")
    ] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="With --ray: how many; by default 1.")
    ] = None,
    autoscale: Annotated[
        str | None,
        typer.Option(metavar="MIN:MAX", help="With --ray: as many between these as are needed."),
    ] = None,
) -> None:
    """Answer over HTTP for every task file in a folder, from one network.

    Task files that are put into the folder, replaced or removed are noticed while it
    runs. There is a page to try tasks at the server's address, the API is described at
    /openapi.json, and piggyback predict --url asks it. It stops at Ctrl-C or SIGTERM,
    when what was asked is answered.

    With a token every request has to bring it (Authorization: Bearer TOKEN), and tasks
    can be added and removed over HTTP. Needs the extra:
    pip install "torch-piggyback[serve]", for --ray [ray] too.

    \b
    Examples:
      piggyback serve piggyback-quickstart/tasks
      piggyback serve tasks/ --port 9000 --memory 512MiB
      piggyback serve tasks/ --host 0.0.0.0 --token-file token.txt
      piggyback serve s3://bucket/tasks --backbone efficientnet_lite0
      piggyback serve tasks/ --ray --replicas 4
      piggyback serve tasks/ --ray --autoscale 1:4
    """
    budget = parse_bytes(memory, "--memory")
    body = parse_bytes(max_body, "--max-body")
    token = read_token(token_file)
    between = _between(autoscale)
    for name, given in (("--replicas", replicas), ("--autoscale", autoscale)):
        if not ray and given is not None:
            raise InputError(f"{name}: it is for --ray; give that too, or leave it out")
    if replicas is not None and between is not None:
        raise InputError("--replicas and --autoscale: one of the two says how many; leave one out")
    header = first_task(tasks)
    if header is not None:
        spec = spec_of(header, backbone)
    elif backbone is not None:
        spec = backbone
    else:
        raise no_tasks(tasks)
    options = EngineOptions(
        max_batch=max_batch,
        max_queue=max_queue,
        workers=workers,
        device=device,
        precision=precision.value,
        compile=compile,
        max_pixels=max_pixels,
        decode_apart=True,
    )
    if ray:
        _check_for_ray(checkpoint, head, port, log_level)
    from piggyback.serve.http.limits import Limits  # says which extra is missing

    limits = Limits(body_bytes=body, timeout_s=timeout)
    if ray:
        from piggyback.serve import cluster

        cluster.run(
            cluster.ClusterOptions(
                tasks=tasks,
                backbone=spec,
                memory=budget,
                engine=options,
                limits=limits,
                token=token,
                replicas=replicas or 1,
                autoscale=between,
            ),
            host=host,
            port=port,
            say=typer.echo,
        )
        return

    def start() -> Engine:
        from piggyback.serve.engine import Engine

        return Engine(_network(header, spec, checkpoint, head), tasks, budget, options)

    notes().print(f"loading {spec} ...")
    raise typer.Exit(_serve(start, host, port, token, limits, log_level))


def _serve(
    start: Callable[[], Engine],
    host: str,
    port: int,
    token: str | None,
    limits: Limits,
    log_level: LogLevel,
) -> int:
    """Answer from this process until it is told to stop; return the exit status."""
    from piggyback.serve.http.app import create_app
    from piggyback.serve.http.server import run as run_server

    started: list[Engine] = []

    def begin() -> Engine:
        started.append(start())
        return started[0]

    def say(line: str) -> None:
        _tell(line, started[0])

    app = create_app(begin, token=token, limits=limits)
    return run_server(app, host, port, say=say, log_level=log_level.value)


def _between(autoscale: str | None) -> tuple[int, int] | None:
    """The fewest and the most replicas."""
    if autoscale is None:
        return None
    low, _, high = autoscale.partition(":")
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise InputError(f"--autoscale {autoscale!r}: expected MIN:MAX, such as 1:4")
    return int(low), int(high)


def _network(
    header: TaskHeader | None, spec: str, checkpoint: Path | None, head: str | None
) -> Backbone:
    """The backbone, for images of the size that the first task's file names."""
    if header is None:
        return load_backbone(spec, checkpoint=checkpoint, head=head)
    return backbone_of(header, spec, checkpoint, head)


def _tell(line: str, engine: Engine) -> None:
    """Say on standard output that there are answers, and on standard error which files have none."""
    for file, reason in sorted(engine.refused().items()):
        notes().print(f"left out: {file}: {reason}")
    count = len(engine.tasks())
    typer.echo(f"{line} ({count} task{'s' * (count != 1)}; {engine.source}; {engine.speed})")


def _check_for_ray(
    checkpoint: Path | None, head: str | None, port: int, log_level: LogLevel
) -> None:
    """Raises InputError for what replicas cannot be told."""
    for name, given in (("checkpoint", checkpoint), ("head", head)):
        if given is not None:
            raise InputError(
                f"--{name}: with --ray every replica loads the backbone by its name alone; leave it "
                "out, or name a backbone of your own: path/to/file.py:factory"
            )
    if port == 0:
        raise InputError("--port 0: with --ray expected a port from 1 to 65535")
    if log_level is not LogLevel.INFO:
        raise InputError("--log-level: with --ray expected none; Ray's own settings decide")
