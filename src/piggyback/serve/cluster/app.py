"""The application of Ray Serve: an ingress that speaks HTTP, and engines behind it."""

from __future__ import annotations

import re
import signal
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from piggyback.errors import PiggybackWarning, require
from piggyback.serve.cluster.failures import Failure
from piggyback.serve.cluster.ingress import Ingress
from piggyback.serve.cluster.loopback import start_ray
from piggyback.serve.cluster.options import ClusterOptions, from_args
from piggyback.serve.cluster.replica import EngineReplica
from piggyback.serve.http.server import address_of, is_loopback, listen

NAME = "piggyback"
ENGINE = "engine"
INGRESS = "ingress"


def build(args: Mapping[str, Any]) -> Any:
    """Return the ``Application`` that ``serve deploy`` and ``serve run`` start from a config file.

    ``args`` is the file's ``args``: see `piggyback.serve.cluster.options.from_args`. Raises
    InputError for what it does not know, MissingExtraError without Ray.
    """
    return make(from_args(args))


def make(options: ClusterOptions) -> Any:
    """Return the Ray Serve ``Application`` for ``options``."""
    serve = require("ray.serve", "ray")
    common: dict[str, Any] = {
        # The HTTP application writes its own line a request.
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "graceful_shutdown_timeout_s": options.limits.stop_s,
        "graceful_shutdown_wait_loop_s": 0.5,
    }
    if options.autoscale is None:
        scale: dict[str, Any] = {"num_replicas": options.replicas}
    else:
        fewest, most = options.autoscale
        # A replica is busy with a full batch that runs and one that waits.
        busy = options.engine.max_batch
        wanted = {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": busy}
        scale = {"autoscaling_config": wanted}
    engines = serve.deployment(
        EngineReplica,
        name=ENGINE,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        # Enough for full batches, and no more: what a hot task's replica cannot take, others do.
        max_ongoing_requests=2 * options.engine.max_batch,
        max_queued_requests=options.engine.max_queue,
        max_constructor_retry_count=1,  # what an engine raises at its start, it would raise again
        **common,
        **scale,
    ).bind(options)
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name=INGRESS,
        ray_actor_options={"num_cpus": 0},
        # The HTTP application has its own limits and says what is wrong: requests have to get there.
        max_ongoing_requests=options.engine.max_queue + 1024,
        **common,
    )
    return ingress.bind(engines, options)


def run(
    options: ClusterOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    say: Callable[[str], object] | None = None,
) -> None:
    """Start Ray on this machine, serve until SIGTERM or Ctrl-C, finish what is in flight, and stop Ray.

    ``say`` gets one line with the address once there are answers. Ray itself listens on loopback,
    whatever ``host`` is, without its dashboard and without reporting its use. A cluster of machines
    is started by Ray's own tools and served from a config file (docs/CLUSTER.md). Raises what a
    replica raised at its start, MissingExtraError without Ray; warns of a host that others can
    reach where there is no token.
    """
    if options.token is None and not is_loopback(host):
        warnings.warn(
            f"host {host}: everyone who can reach it may ask this server, for it has no token; "
            "give it one with --token-file",
            PiggybackWarning,
            stacklevel=2,
        )
    if "://" not in options.tasks:
        options = replace(options, tasks=str(Path.cwd() / options.tasks))
    listen(host, port).close()  # one that cannot be had is better said now than in Ray's log
    ray = start_ray()
    try:
        serve = require("ray.serve", "ray")
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        try:
            serve.run(make(options), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise _cause(serve.status(), error) from error
        if say is not None:
            say(f"ready at {address_of(host, port)}")
        _until_told()
        # Ray ends its proxy first, and what that was answering would be lost.
        last = serve.get_app_handle(NAME).broadcast("finish")
        last.results(timeout_s=options.limits.stop_s + 5.0, return_exceptions=True)
        serve.shutdown()
    finally:
        ray.shutdown()


def _cause(status: Any, error: RuntimeError) -> Exception:
    """What a replica raised, out of the traceback that Ray keeps of it."""
    told = [d.message for d in status.applications[NAME].deployments.values()]
    found = re.findall(r"piggyback\.errors\.(\w+): (.+)", "\n".join([str(error), *told]))
    return Failure(*found[-1]).error() if found else error


def _until_told() -> None:
    """Return when the process is asked to stop."""
    told = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        told.set()

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        told.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
