"""Log records as lines of JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_ENCODER = json.JSONEncoder(separators=(",", ":"), default=str)


class JsonLines(logging.Formatter):
    """Writes a record as one line: time, level and either a message or, if the message is a dict, its items.

    >>> record = logging.LogRecord("access", logging.INFO, "", 0, {"status": 200}, None, None)
    >>> json.loads(JsonLines().format(record))["status"]
    200
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
        }
        if isinstance(record.msg, dict):
            line.update(record.msg)
        else:
            line["logger"] = record.name
            line["message"] = record.getMessage()
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return _ENCODER.encode(line)


@contextmanager
def logging_to(stream: TextIO | None = None, level: str = "info") -> Iterator[None]:
    """Write what the library and uvicorn log to ``stream`` (standard error) as lines of JSON, within the block.

    What the parser of forms has to say is said to the client.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    least: int = logging.getLevelName(level.upper())
    # One line a request is ours; uvicorn says in five more that it has started.
    wanted = {"piggyback": least, "uvicorn": max(least, logging.WARNING)}
    loggers = [logging.getLogger(name) for name in (*wanted, "python_multipart")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers[:2]:
        logger.addHandler(handler)
        logger.setLevel(wanted[logger.name])
        logger.propagate = False
    loggers[2].setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, (old, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old)
            logger.propagate = propagate
