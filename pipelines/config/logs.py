"""Log lines of a worker: one format for our modules and the libraries', for people or machines."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import structlog

QUIET = dict.fromkeys(
    ("faust", "mode", "aiokafka", "kafka", "asyncio", "pipelines.kafka.transport"), logging.WARNING
)
"""Libraries that narrate their work; their warnings stay. Level debug lets them all speak."""
REPEATING = ("aiokafka", "kafka")
REPEAT_SECONDS = 10.0
MANY = 256


class Repeats(logging.Filter):
    """Lets the same complaint of a Kafka client through once in ``REPEAT_SECONDS``; the next one says
    how many were left out. With a broker away a worker's clients complain a hundred times a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in REPEATING:
            return True
        key, now = (record.name, record.getMessage()), self._clock()
        since, left_out = self._seen.get(key, (float("-inf"), 0))
        if now - since < REPEAT_SECONDS:
            self._seen[key] = since, left_out + 1
            return False
        if len(self._seen) >= MANY:  # some texts have a number in them
            self._seen.clear()
        self._seen[key] = now, 0
        if left_out:
            record.msg = f"{key[1]} (and {left_out} more like it before)"
            record.args = ()
        return True


def configure_logging(log_format: str, level: str) -> None:
    """Send all logging of the process to standard error. Replaces handlers set before."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    json = log_format == "json"
    final: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if json:
        final += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Its usual tracebacks show local variables: transcripts, and what logs in.
        plain = structlog.dev.plain_traceback
        final.append(
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    if level != "debug":
        handler.addFilter(Repeats())
        for name, quiet in QUIET.items():
            logging.getLogger(name).setLevel(max(quiet, root.level))
