"""How Kafka clients are told where the brokers are and who we are, and why they are turned away."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Protocol

from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from operators.errors import ConfigError
from pipelines.config.load import Settings

DIAGNOSIS_SECONDS = 5.0
CLOSE_SECONDS = 1.0
STOP_SECONDS = 3.0
_OTHER_LANGUAGE = (ssl.SSLError, ConnectionResetError, IllegalSaslStateError, KafkaConnectionError)


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """Certificates are always checked; None where the connection is not encrypted.

    Raises ConfigError for a file that holds no certificates.
    """
    if settings.security_protocol not in ("SSL", "SASL_SSL"):
        return None
    try:
        return ssl.create_default_context(cafile=settings.ssl_cafile)
    except OSError as error:  # SSLError is one
        raise ConfigError(
            f"ssl_cafile {settings.ssl_cafile}: no certificates in PEM format can be read from it "
            f"({getattr(error, 'reason', None) or error.strerror or error})"
        ) from None


def client_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments common to aiokafka's consumers and producers."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap.split(","),
        "client_id": f"longstream-{settings.worker}",
        "security_protocol": settings.security_protocol,
        "ssl_context": ssl_context(settings),
    }
    return options | login(settings)


def login(settings: Settings) -> dict[str, Any]:
    """Keyword arguments of aiokafka and kafka-python for a login; empty where there is none."""
    if settings.sasl_password is None:
        return {}
    return {
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password.get_secret_value(),
    }


def compression(settings: Settings) -> str | None:
    """As clients name it: None for none."""
    return None if settings.compression == "none" else settings.compression


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


async def turned_away(settings: Settings) -> ConfigError | None:
    """Why the broker at the first address that answers will not have us; None if it would, or if
    nobody is there.

    Clients try until their time is up and then only say that they could not connect; the reason
    stands in their logs at best. So one bare connection is made, whose error says it.
    """
    for server in settings.bootstrap.split(","):
        try:
            await asyncio.wait_for(_connect(settings, server), DIAGNOSIS_SECONDS)
        except (ConnectionRefusedError, TimeoutError):
            continue
        except (KafkaError, OSError) as error:
            if (sentence := _sentence(settings, server, error)) is not None:
                refusal = ConfigError(sentence)
                refusal.__cause__ = error
                return refusal
            continue
        return None
    return None


async def _connect(settings: Settings, server: str) -> None:
    host, _, port = server.rpartition(":")
    connection = AIOKafkaConnection(
        host.strip("[]"),
        int(port),
        client_id="longstream-diagnosis",
        request_timeout_ms=int(DIAGNOSIS_SECONDS * 1000),
        security_protocol=settings.security_protocol,
        ssl_context=ssl_context(settings),
        **login(settings),
    )
    try:
        await connection.connect()
    except OSError:  # no connection was opened
        raise
    except BaseException:
        await _closed(connection)
        raise
    await _closed(connection)


async def _closed(connection: AIOKafkaConnection) -> None:
    """Close it, and wait for the other side: an event loop that ends before the other side has closed
    a TLS connection leaves the socket open."""
    await asyncio.wait({connection.close()}, timeout=CLOSE_SECONDS)


def _sentence(settings: Settings, server: str, error: Exception) -> str | None:
    """The error in words, without anything that was sent."""
    if isinstance(error, SaslAuthenticationFailed):
        return (
            f"the Kafka at {server} refuses the login of {settings.sasl_username!r} by "
            f"{settings.sasl_mechanism}: check sasl_username, sasl_password_file and sasl_mechanism"
        )
    if isinstance(error, UnsupportedSaslMechanismError):
        return (
            f"the Kafka at {server} does not take logins by {settings.sasl_mechanism}: "
            "set another sasl_mechanism"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of the Kafka at {server} is not trusted ({error.verify_message}): "
            "give the authority that signed it as ssl_cafile"
        )
    # It hung up on our first words, or answered with what is no answer.
    if isinstance(error, _OTHER_LANGUAGE):
        return (
            f"something listens at {server}, but does not speak {settings.security_protocol}: "
            "check the port and security_protocol"
        )
    return None


_stopping: set[asyncio.Task[None]] = set()


class Client(Protocol):
    """A consumer or producer of aiokafka."""

    async def stop(self) -> None: ...


async def disconnect(client: Client) -> None:
    """Stop a client that is needed no more, in a task of its own.

    With its broker away a client stops when the broker is back: after STOP_SECONDS that is not waited
    for. Nor may it cut us off: a consumer that stops cancels its fetches, and where one of them was
    just waiting to try again the cancellation comes through to whoever stops it.
    """
    task = asyncio.get_running_loop().create_task(client.stop())
    _stopping.add(task)
    task.add_done_callback(_forget)
    await asyncio.wait({task}, timeout=STOP_SECONDS)


def _forget(task: asyncio.Task[None]) -> None:
    _stopping.discard(task)
    if not task.cancelled():
        task.exception()  # looked at: nothing is left to be done about it
