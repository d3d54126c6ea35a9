"""The application of Ray Serve: replicas, each an engine and the ordinary HTTP application, behind Ray's proxy.

    client -> Ray's proxy -> a replica: HTTP application -> engine

Requests with a header ``serve_multiplexed_model_id: TASK`` go to a replica that has the task in memory, if one has;
others to whichever has least to do.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from piggyback import errors
from piggyback.errors import PiggybackError, UnavailableError, require
from piggyback.serve.cluster.options import ClusterOptions, from_args
from piggyback.serve.cluster.replica import Replica
from piggyback.serve.http.server import address_of, is_loopback, listen, warn_if_open

NAME = "piggyback"


def build(args: Mapping[str, Any]) -> Any:
    """Return the ``Application`` that ``serve deploy`` and ``serve run`` start with a config file's ``args``.

    Raises InputError for what ``options.from_args`` does not know, MissingExtraError without Ray.
    """
    return _application(from_args(args))


def _application(options: ClusterOptions) -> Any:
    serve = require("ray.serve", "ray")
    scale: dict[str, Any] = {"num_replicas": options.replicas}
    if options.autoscale is not None:
        fewest, most = options.autoscale
        # A replica is busy with a full batch that runs and one that waits.
        busy = options.engine.max_batch
        wanted = {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": busy}
        scale = {"autoscaling_config": wanted}
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        # The HTTP application has its own limits and says what is wrong: requests have to get there.
        max_ongoing_requests=options.engine.max_queue + 1024,
        max_constructor_retry_count=1,  # what an engine raises at its start, it would raise again
        logging_config={"log_level": "WARNING", "enable_access_log": False},  # the application logs
        graceful_shutdown_timeout_s=options.limits.stop_s,
        graceful_shutdown_wait_loop_s=0.5,
        **scale,
    )
    return deployment.bind(options)


def run(
    options: ClusterOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    say: Callable[[str], object] | None = None,
) -> None:
    """Start Ray on this machine, serve until SIGTERM or Ctrl-C, finish what is in flight, and stop Ray.

    ``say`` gets one line with the address once there are answers. A cluster of machines is started by Ray's own tools
    and served from a config file (docs/CLUSTER.md). Raises what a replica raised at its start, MissingExtraError
    without Ray; warns of a host that others can reach where there is no token.
    """
    warn_if_open(host, options.token)
    if options.token is None and is_loopback(host):
        options = replace(options, local_only=True)
    if "://" not in options.tasks:
        options = replace(options, tasks=str(Path.cwd() / options.tasks))
    listen(host, port).close()  # one that cannot be had is better said now than in Ray's log
    ray = _start_ray()
    try:
        serve = require("ray.serve", "ray")
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        try:
            serve.run(_application(options), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise _cause(serve.status(), error) from error
        if say is not None:
            say(f"ready at {address_of(host, port)}")
        _wait_for_signal()
        # Ray ends its proxy first, and what that was answering would be lost.
        last = serve.get_app_handle(NAME).broadcast("finish")
        last.results(timeout_s=options.limits.stop_s + 5.0, return_exceptions=True)
        serve.shutdown()
    finally:
        ray.shutdown()


def _start_ray() -> Any:
    """The ``ray`` module, with a Ray of this process's own on loopback, without its dashboard and usage reports.

    Each replica has a port on all addresses, by which Ray's processes send each other pickles; they want this token.
    """
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # The one setting by which Ray takes loopback for its address on every system: a loopback address
    # that is given to ray.init is replaced by the machine's own.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = require("ray", "ray")
    ray.init(address="local", include_dashboard=False, logging_level="warning")
    address = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(address).is_loopback:
        ray.shutdown()
        raise UnavailableError(
            f"Ray listens on {address}: expected loopback; start it in a process that has not imported ray"
        )
    return ray


def _cause(status: Any, error: RuntimeError) -> Exception:
    """What a replica raised, out of the traceback that Ray keeps of it."""
    told = [d.message for d in status.applications[NAME].deployments.values()]
    found = re.findall(r"piggyback\.errors\.(\w+): (.+)", "\n".join([str(error), *told]))
    if not found:
        return error
    kind: type[PiggybackError] = getattr(errors, found[-1][0])
    return kind(found[-1][1])


def _wait_for_signal() -> None:
    """Return when the process is asked to stop."""
    asked, kinds = threading.Event(), (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda *_: asked.set()) for kind in kinds]
    asked.wait()
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)
