"""Log lines of a worker: one format for our modules and the libraries', for people or machines."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

QUIET = dict.fromkeys(
    ("faust", "mode", "aiokafka", "kafka", "asyncio", "pipelines.transport"), logging.WARNING
)
"""Libraries that narrate their work; their warnings stay. Level debug lets them all speak."""


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
        final.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    if level != "debug":
        for name, quiet in QUIET.items():
            logging.getLogger(name).setLevel(max(quiet, root.level))
