"""Connections that are kept open, shared by threads, one request at a time on each."""

from __future__ import annotations

import http.client
import os
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from piggyback.client.address import Address
from piggyback.errors import ClosedError, DeadlineError, ServerError


@dataclass(frozen=True)
class Reply:
    """What a server sent back."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class Connections:
    """Sends requests to one server; any number of threads may, each with a connection to itself meanwhile."""

    def __init__(self, address: Address, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self._tls = ssl.create_default_context() if address.secure else None
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._process = os.getpid()
        self._closed = False

    def send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], again: bool
    ) -> Reply:
        """Return the answer to one request.

        A server may close a connection that lies idle at the moment a request goes out on it. A request that is
        harmless to do twice (``again``) then goes out once more, on a new connection; any other never goes out on
        a connection that was used before.

        Raises ServerError if there is no server, or it breaks off, DeadlineError after ``timeout`` seconds, and
        ClosedError after ``close``.
        """
        connection = self._take(again)
        if connection is not None:
            try:
                return self._exchange(connection, method, path, body, headers)
            except DeadlineError:  # an OSError too
                raise
            except (OSError, http.client.HTTPException):
                pass  # most likely closed while it was idle; a new connection tells
        return self._fresh(method, path, body, headers)

    def close(self) -> None:
        """Close all connections; those in use, when their answer has come."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _fresh(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Reply:
        """One request on a new connection, with every way it can fail as an error of ours."""
        connection = self._new()
        unreached = f"server {self.address}: cannot be reached"
        try:
            connection.connect()  # also turns off Nagle's wait for more to send
        except TimeoutError as error:
            raise DeadlineError(
                f"server {self.address}: no connection in {self.timeout:g} seconds"
            ) from error
        except (OSError, UnicodeError) as error:  # the latter for a host name that cannot be one
            connection.close()
            raise ServerError(
                f"{unreached} ({getattr(error, 'strerror', None) or error}); is it running, and is "
                "the URL right?"
            ) from error
        try:
            return self._exchange(connection, method, path, body, headers)
        except DeadlineError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(
                f"server {self.address}: broke off at {method} {path} "
                f"({str(error) or type(error).__name__}); is it stopping, or no HTTP server?"
            ) from error

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> Reply:
        try:
            try:
                connection.request(method, self.address.base + path, body, dict(headers))
            except (BrokenPipeError, ConnectionResetError):
                # A server that refuses a large body answers and closes before it has read all of it.
                if connection.sock is None:
                    raise
            answer = connection.getresponse()
            data = answer.read()
            reply = Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, data)
        except TimeoutError as error:
            connection.close()
            raise DeadlineError(
                f"server {self.address}: no answer to {method} {path} in {self.timeout:g} seconds"
            ) from error
        except BaseException:  # also Ctrl-C: half an answer must not be taken for the next one's
            connection.close()
            raise
        if answer.will_close:
            connection.close()
        else:
            self._give_back(connection)
        return reply

    def _new(self) -> http.client.HTTPConnection:
        host, port = self.address.host, self.address.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=self.timeout, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=self.timeout)

    def _take(self, used: bool) -> http.client.HTTPConnection | None:
        """The idle connection that was used last, the likeliest to be open still; None for a new one."""
        with self._lock:
            if self._closed:
                raise ClosedError(f"client of {self.address}: it was closed; make a new one")
            if self._process != os.getpid():
                # After a fork both processes hold the same sockets and would read each other's answers.
                self._idle, self._process = [], os.getpid()
            return self._idle.pop() if used and self._idle else None

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()
