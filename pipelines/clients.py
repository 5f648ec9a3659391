"""How Kafka clients are told where the brokers are and who we are."""

from __future__ import annotations

import ssl
from typing import Any

from pipelines.settings import Settings


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """Certificates are always checked; None where the connection is not encrypted."""
    if settings.security_protocol not in ("SSL", "SASL_SSL"):
        return None
    return ssl.create_default_context(cafile=settings.ssl_cafile)


def client_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments common to aiokafka's consumers and producers."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap.split(","),
        "client_id": f"longstream-{settings.worker}",
        "security_protocol": settings.security_protocol,
        "ssl_context": ssl_context(settings),
    }
    if settings.sasl_password is not None:
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password.get_secret_value(),
        }
    return options


def faust_credentials(settings: Settings) -> Any:
    """The same for Faust, which has classes of its own for it; None for plain text."""
    import faust  # slow to import, and not needed to ask for help or check topics

    context = ssl_context(settings)
    if settings.sasl_password is not None:
        return faust.SASLCredentials(
            username=settings.sasl_username,
            password=settings.sasl_password.get_secret_value(),
            mechanism=settings.sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


def faust_broker(settings: Settings) -> str:
    return ";".join(f"kafka://{server}" for server in settings.bootstrap.split(","))
