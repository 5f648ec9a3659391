"""The server that the settings of a worker, or the options of a command, name."""

from __future__ import annotations

from pipelines.config.load import Settings, load_settings
from pipelines.served.settings import ServerSettings


def chosen_server(backend: str, url: str = "", model: str = "") -> ServerSettings | None:
    """The server of a command's options; what they leave open, its key above all, comes from the
    environment and the configuration file. None for another backend. Raises ConfigError."""
    if backend != "openai":
        return None
    found = load_settings(backend=backend, server_url=url or None, server_model=model or None)
    return server_settings(found)


def server_settings(settings: Settings) -> ServerSettings | None:
    """The server of ``backend = "openai"``; None for another backend. Raises ConfigError."""
    if settings.backend != "openai":
        return None
    key = settings.server_key
    return ServerSettings(
        url=settings.server_url,
        model=settings.server_model,
        key=key.get_secret_value() if key else "",
        cafile=str(settings.server_cafile or ""),
        timeout_s=settings.server_timeout_s,
        attempts=settings.server_attempts,
        openings=settings.server_openings,
        extra=settings.server_extra,
    )
