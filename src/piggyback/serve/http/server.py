"""Runs the application: one process, one port, an orderly end."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from types import FrameType
from typing import Literal

import uvicorn
from fastapi import FastAPI

from piggyback.errors import InputError, PiggybackWarning
from piggyback.serve.http.logs import logging_to
from piggyback.serve.http.service import Service

KEEP_ALIVE_S = 30
"""For which a connection may stay open without a request."""
MAX_HEAD = 65536
"""Bytes of a request's line and headers, where uvicorn's parser bounds them: that of h11."""
LAST_S = 3
"""For which uvicorn waits for connections to close once everything is answered."""

LogLevel = Literal["debug", "info", "warning", "error", "critical"]


def run(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    say: Callable[[str], object] | None = None,
    log_level: LogLevel = "info",
) -> None:
    """Serve what ``create_app`` made until SIGTERM or Ctrl-C, then answer what is queued.

    ``say`` (a line on standard output) gets one line with the address once there are answers; ``port`` 0 takes a free
    one. Logs go to standard error as JSON. Raises InputError for a port that cannot be had, and what the start of the
    engine raised; warns of a host that others can reach where there is no token. Where others cannot reach it and there
    is no token, only requests for an address or "localhost" are answered.
    """
    service: Service = app.state.service
    bound = listen(host, port)
    if service.token is None and is_loopback(host):
        service.local_only = True
    warn_if_open(host, service.token)
    with closing(bound), logging_to(level=log_level):
        address = address_of(host, bound.getsockname()[1])
        HttpServer(app, address, say or partial(print, flush=True)).run(sockets=[bound])
    if service.failure is not None:
        raise service.failure


def warn_if_open(host: str, token: str | None) -> None:
    """Warn the caller's caller of a host that others can reach where there is no token."""
    if token is None and not is_loopback(host):
        warnings.warn(
            f"host {host}: everyone who can reach it may ask this server, for it has no token; "
            "give it one (token=)",
            PiggybackWarning,
            stacklevel=3,
        )


class HttpServer(uvicorn.Server):
    """uvicorn, which ends in two steps: new requests are refused while old ones are answered, then it closes.

    By itself it would close its port at once, so that who balances the load finds a port closed in place of a 503.
    """

    def __init__(self, app: FastAPI, address: str, say: Callable[[str], object]) -> None:
        self.service: Service = app.state.service
        super().__init__(
            uvicorn.Config(
                app,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=self.service.limits.connections,
                h11_max_incomplete_event_size=MAX_HEAD,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_S,
            )
        )
        self.address, self._say = address, say
        self._said = False
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal does not wait for what is being answered."""
        if self._until is None:
            self.service.refuse()
            self._until = time.monotonic() + self.service.limits.stop_s
        else:
            self.service.abandon()
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, how far things are; return whether to end."""
        service = self.service
        if service.status == "ready" and not self._said:
            self._said = True
            self._say(f"ready at {self.address}")
        late = self._until is not None and time.monotonic() > self._until
        done = self._until is not None and not service.in_flight
        if late:
            service.abandon()
        if service.status == "failed" or late or done:
            self.should_exit = True
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises InputError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0
        said = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        why = os.strerror(number) if number > 0 else said  # below 0: of a name that is not known
        free = "another one, or 0 for a free one"
        other = ""
        if number in (errno.EADDRINUSE, errno.EACCES) or isinstance(error, OverflowError):
            other = f"; choose {free}"
        elif number == errno.EADDRNOTAVAIL or number <= 0:
            other = "; choose 127.0.0.1, or 0.0.0.0 for all"
        raise InputError(f"port {port} on {host} cannot be had ({why}){other}") from error


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``.

    >>> is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(host: str, port: int) -> str:
    """Return the URL of what listens there.

    >>> address_of("::1", 8000)
    'http://[::1]:8000'
    """
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
