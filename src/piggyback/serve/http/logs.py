"""Log records as lines of JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


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
            line |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, separators=(",", ":"), default=str)


@contextmanager
def logging_to(stream: TextIO | None = None, level: str = "info") -> Iterator[None]:
    """Write what the library and uvicorn log to ``stream`` (standard error) as lines of JSON, within the block."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    least = getattr(logging, level.upper())
    # uvicorn says in five lines that it has started; what the parser of forms has to say, the client is told.
    levels = {
        "piggyback": least,
        "uvicorn": max(least, logging.WARNING),
        "python_multipart": logging.CRITICAL,
    }
    before = []
    for name, one in levels.items():
        logger = logging.getLogger(name)
        before.append((logger, logger.level, logger.propagate))
        logger.addHandler(handler)
        logger.setLevel(one)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, old, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(old)
            logger.propagate = propagate
