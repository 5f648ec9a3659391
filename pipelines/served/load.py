"""An operator on another backend than the engine of this project."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from operators.config import OperatorConfig
from operators.errors import ConfigError
from operators.model.served import ServedModel, TextModel
from operators.observer import Observer
from operators.served_operator import ServedOperator
from operators.tasks.base import Task
from pipelines.served.settings import ServerSettings

Say = Callable[[str], None]


def connect(server: ServerSettings, concurrency: int, say: Say = lambda message: None) -> TextModel:
    """The model at a server. Raises ConfigError, ModelError or DeviceError."""
    from pipelines.served.openai import OpenAIServer

    found = OpenAIServer(server, concurrency=concurrency, say=say)
    try:
        found.connect()
    except BaseException:
        found.close()
        raise
    return found


def load_text_model(
    server: ServerSettings | None,
    config: OperatorConfig,
    *,
    name: str,
    folder: Path | None = None,
    draft: Path | None = None,
    device: str = "auto",
    say: Say = lambda message: None,
) -> TextModel:
    """The server's model, else transformers' of ``folder``. Raises ConfigError, ModelError or
    DeviceError."""
    if server is not None:
        return connect(server, config.branches, say)
    if folder is None:
        raise ConfigError("backend openai needs server_url")
    from pipelines.served.hub import load_transformers

    return load_transformers(folder, name=name, assistant=draft, device=device)


def served_operator(
    text: TextModel,
    config: OperatorConfig,
    *,
    observer: Observer | None = None,
    tasks: Sequence[Task] = (),
    closes_model: bool = True,
) -> ServedOperator:
    """``config``'s draft model, if any, is the text model's own business. Raises ConfigError."""
    try:
        return ServedOperator(
            ServedModel(text),
            replace(config, draft_model="", drafter="none"),
            clock=time.monotonic,
            observer=observer,
            tasks=tasks,
            closes_model=closes_model,
        )
    except BaseException:
        if closes_model:
            text.close()
        raise
