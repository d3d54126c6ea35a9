"""Ray on loopback only: what is started for one machine must not be reachable from others."""

from __future__ import annotations

import ipaddress
import logging
import os
from typing import Any

from piggyback.errors import UnavailableError, require

logger = logging.getLogger(__name__)


def start_ray() -> Any:
    """Return the ``ray`` module, with a Ray of this process's own that listens on loopback.

    Without its dashboard and without reporting its use. Raises MissingExtraError without Ray, and
    UnavailableError where ``ray`` was imported before: it chose its address then.
    """
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


def keep_to_loopback() -> None:
    """In a replica of a Ray on loopback, keep the replica's own port to loopback as well.

    Ray opens a port in each replica for calls between replicas, on all addresses, and takes pickles
    from it: whoever reaches it could run code. It has no setting for the address. Call this while
    the replica is being constructed; the port is opened afterwards.
    """
    ray = require("ray", "ray")
    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        return  # a cluster of machines: replicas call each other, see docs/CLUSTER.md
    replica: Any = require("ray.serve._private.replica", "ray")
    opened = getattr(replica, "add_port_to_grpc_server", None)
    if opened is None:
        logger.warning(
            "this version of Ray cannot be told to keep replicas to loopback; block its ports from other machines"
        )
        return

    def on_loopback(server: Any, address: str) -> Any:
        return opened(server, address.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = on_loopback
