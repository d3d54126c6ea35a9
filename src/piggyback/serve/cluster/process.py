"""What a process that Ray has started for us does first."""

from __future__ import annotations

import logging

from piggyback.serve.cluster.loopback import keep_to_loopback
from piggyback.serve.http.logs import JsonLines


def begin() -> None:
    """Keep the process to loopback where its Ray is, and write its log to standard error as lines of JSON."""
    keep_to_loopback()
    logger = logging.getLogger("piggyback")
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Ray's own handlers would write every line again
