"""``piggyback serve``: answers over HTTP for every task file in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from piggyback.cli.computing import DeviceOption, ThreadsOption, compute_with
from piggyback.cli.loading import backbone_of, spec_of
from piggyback.cli.options import CheckpointOption, HeadOption, TokenFileOption
from piggyback.cli.screen import notes
from piggyback.errors import InputError, PiggybackError
from piggyback.names import plain, read_token
from piggyback.serve.options import EngineOptions, Precision, parse_bytes
from piggyback.taskfile.header import TaskHeader, header_of

if TYPE_CHECKING:
    from piggyback.serve.engine import Engine

LIMITS, RAY = "Limits", "Several processes"
"""Sections of the help page."""
LogLevel = Literal["debug", "info", "warning", "error"]


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
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    token_file: TokenFileOption = None,
    memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Memory for tasks, besides the network, such as 512MiB."),
    ] = "2GiB",
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="Precision of the network; auto: bfloat16 if the processor has bfloat16 instructions."
        ),
    ] = "auto",
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the network: the first batches take minutes, later ones are faster.",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads that run the network; by default what suits the machine."
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Most images answered together.", rich_help_panel=LIMITS)
    ] = EngineOptions.max_batch,
    max_queue: Annotated[
        int,
        typer.Option(
            min=1, help="Most images that may wait; more get 429.", rich_help_panel=LIMITS
        ),
    ] = EngineOptions.max_queue,
    max_body: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Largest request with images or texts; larger ones get 413.",
            rich_help_panel=LIMITS,
        ),
    ] = "16MiB",
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Largest image; larger ones get 413.", rich_help_panel=LIMITS)
    ] = EngineOptions.max_pixels,
    timeout: Annotated[
        float,
        typer.Option(min=0.001, help="Seconds until an answer; then 504.", rich_help_panel=LIMITS),
    ] = 30.0,
    log_level: Annotated[
        LogLevel, typer.Option(help="From info on, one line per request.")
    ] = "info",
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Run several processes with Ray Serve.", rich_help_panel=RAY),
    ] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="How many; by default 1.", rich_help_panel=RAY)
    ] = None,
    autoscale: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:MAX", help="As many as are needed, between these.", rich_help_panel=RAY
        ),
    ] = None,
) -> None:
    """Answer over HTTP for every task file in a folder, from one network.

    Task files that are put into the folder, replaced or removed are noticed while it
    runs. The server's address has a page to try tasks, /docs describes the API, and
    piggyback predict --url asks it. At Ctrl-C or SIGTERM it stops once every request
    that it has accepted is answered.

    With a token, requests under /v1 and for /metrics have to bring it (Authorization:
    Bearer TOKEN), and tasks can be added and removed over HTTP. Needs an extra:
    pip install ".[serve]", or [ray] for --ray.

    \b
    Examples:
      piggyback serve piggyback-quickstart/tasks
      piggyback serve tasks/ --port 9000 --memory 512MiB
      piggyback serve tasks/ --host 0.0.0.0 --token-file token.txt
      piggyback serve s3://bucket/tasks --backbone efficientnet_lite0
      piggyback serve streets/ --backbone segmentation:efficientnet_lite0
      piggyback serve tasks/ --ray --replicas 4
      piggyback serve tasks/ --ray --autoscale 1:4
    """
    if not ray:
        compute_with(threads, device)
    budget = parse_bytes(memory, "--memory")
    body = parse_bytes(max_body, "--max-body")
    token = read_token(token_file)
    between = _between(autoscale)
    for name, given in (("--replicas", replicas), ("--autoscale", autoscale)):
        if not ray and given is not None:
            raise InputError(f"{name}: it is for --ray; give that too, or leave it out")
    if replicas is not None and between is not None:
        raise InputError("--replicas and --autoscale: one of the two says how many; leave one out")
    header = _first_task(tasks)
    spec = backbone or "" if header is None else spec_of(header, backbone)
    if not spec:
        raise _no_tasks(tasks)
    options = EngineOptions(
        max_batch=max_batch,
        max_queue=max_queue,
        workers=workers,
        device=device,
        precision=precision,
        compile=compile,
        max_pixels=max_pixels,
        decode_apart=True,
    )
    if ray:
        _check_for_ray(checkpoint, head, threads, port, log_level)

    from piggyback.serve.http import Limits, create_app  # says which extra is missing

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

    from piggyback.serve.http import server

    engines: list[Engine] = []

    def start() -> Engine:
        notes().print(f"loading {spec} ...")
        from piggyback.serve.engine import Engine
        from piggyback.zoo.load import load_backbone

        # For images of the size that the first task's file names.
        if header is None:
            network = load_backbone(spec, checkpoint=checkpoint, head=head)
        else:
            network = backbone_of(header, spec, checkpoint, head)
        engines.append(Engine(network, tasks, budget, options))
        return engines[0]

    def say(line: str) -> None:
        _announce(line, engines[0])

    app = create_app(start, token=token, limits=limits)
    server.run(app, host, port, say=say, log_level=log_level)


def _between(autoscale: str | None) -> tuple[int, int] | None:
    """The fewest and the most replicas."""
    if autoscale is None:
        return None
    low, _, high = autoscale.partition(":")
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise InputError(f"--autoscale {autoscale!r}: expected MIN:MAX, such as 1:4")
    return int(low), int(high)


def _announce(line: str, engine: Engine) -> None:
    """Say on standard output that there are answers, and on standard error which files have none."""
    for file, reason in sorted(engine.refused().items()):
        notes().print(plain(f"left out: {file}: {reason}"), soft_wrap=True)
    count = len(engine.tasks())
    loaded = plain(engine.source)
    typer.echo(f"{line} ({count} task{'s' * (count != 1)}; {loaded}; {engine.speed})")


def _check_for_ray(
    checkpoint: Path | None, head: str | None, threads: int | None, port: int, log_level: LogLevel
) -> None:
    """Raises InputError for what replicas cannot be told."""
    if threads is not None:
        raise InputError(
            "--threads: with --ray every replica takes its share of cores; leave it out"
        )
    for name, given in (("checkpoint", checkpoint), ("head", head)):
        if given is not None:
            raise InputError(
                f"--{name}: with --ray every replica loads the backbone by its name alone; leave it "
                "out, or name your own backbone: path/to/file.py:factory"
            )
    if port == 0:
        raise InputError("--port 0: with --ray expected a port from 1 to 65535")
    if log_level != "info":
        raise InputError("--log-level: with --ray expected none; Ray's own settings decide")


# -- the folder, or URL, with the tasks ------------------------------------------------------------


def _first_task(place: str) -> TaskHeader | None:
    """The header of the first task file by name that can be read; None for a folder without task files.

    Raises InputError for a folder that is not there or has only files that cannot be read, and UnavailableError for
    a URL that cannot be listed.
    """
    from piggyback.serve.store.stores import SUFFIX, open_store

    folder = Path(place)
    if "://" not in place and not folder.is_dir():
        file = folder.is_file()
        why = "expected a folder, found a file; give its folder" if file else "no such folder"
        hint = f": {str(folder.parent)!r}" if file else "; make it, or check the path"
        raise InputError(f"tasks directory {place!r}: {why}{hint}")
    store = open_store(place)
    problems: list[str] = []
    for name in sorted(store.list()):
        try:
            return header_of(store.read(name))
        except PiggybackError as error:
            problems.append(plain(f"{name}{SUFFIX}: {error}"))
    if problems:
        raise InputError(
            f"tasks directory {place!r}: none of its {len(problems)} task files can be read; "
            f"{problems[0]}"
        )
    return None


def _no_tasks(place: str) -> InputError:
    """The error for a folder without task files, where the backbone is not given either."""
    below = [] if "://" in place else sorted(Path(place).glob("*/*.safetensors"))
    hint = f"; did you mean {str(below[0].parent)!r}?" if below else ""
    return InputError(
        f"tasks directory {place!r}: no task files (NAME.safetensors) in it; give --backbone to "
        f"start without any{hint}"
    )
