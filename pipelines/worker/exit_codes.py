"""Why a worker ended: the exit codes, and which of Kafka's errors waiting cannot mend."""

from __future__ import annotations

from collections.abc import Iterator

from aiokafka import errors as kafka

from operators.errors import ConfigError, DeviceError, LongstreamError, ModelError

OK, FAULT, CONFIG, MODEL, DEVICE, BROKER, DENIED = range(7)

MEANINGS = {
    OK: "stopped as asked; what was finished is committed",
    FAULT: "a fault of longstream itself; the log says where",
    CONFIG: "a setting is wrong, or a topic is missing or too small for what is written to it",
    MODEL: "the model is missing, corrupt, or cannot be run exactly",
    DEVICE: "the model's process kept failing (killed, hung, out of memory)",
    BROKER: "Kafka did not answer, or did not take the results, for broker_patience_s",
    DENIED: "Kafka refused the login, or an access (ACL)",
}

DENIALS = (
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
    kafka.ClusterAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.IllegalSaslStateError,
    kafka.SaslAuthenticationFailed,
    kafka.TopicAuthorizationFailedError,
    kafka.TransactionalIdAuthorizationFailed,
    kafka.UnsupportedSaslMechanismError,
)
UNKNOWN_TOPIC = kafka.UnknownTopicOrPartitionError
MISFITS = (
    kafka.InvalidTopicError,
    kafka.MessageSizeTooLargeError,
    kafka.RecordListTooLargeError,
    kafka.RecordTooLargeError,
    UNKNOWN_TOPIC,
)


class Waited(LongstreamError):
    """Kafka did not answer within the time a worker waits for it."""


_CODES: tuple[tuple[tuple[type[BaseException], ...], int], ...] = (
    (DENIALS, DENIED),
    ((*MISFITS, ConfigError), CONFIG),
    ((ModelError,), MODEL),
    ((DeviceError,), DEVICE),
    ((Waited, kafka.KafkaError), BROKER),
)


def code_of(error: BaseException) -> int:
    """The exit code for what ended a worker: the most telling of the error and its causes."""
    chain = list(causes(error))
    for kinds, code in _CODES:
        if any(isinstance(cause, kinds) for cause in chain):
            return code
    return FAULT


def hopeless(error: BaseException) -> bool:
    """Whether somebody has to change something before this can work: waiting would not help.

    A topic that is not known is no such case: a broker that has just started may not know it yet.
    """
    known = (cause for cause in causes(error) if not isinstance(cause, UNKNOWN_TOPIC))
    return any(isinstance(cause, (*DENIALS, *MISFITS, ConfigError)) for cause in known)


def in_words(error: BaseException) -> str:
    """Kafka's error with what to do about it."""
    if isinstance(error, LongstreamError):
        return str(error)
    for cause in causes(error):
        name = type(cause).__name__
        if isinstance(cause, DENIALS):
            return f"Kafka refuses access ({name}: {cause}); check the login and the ACLs"
        if isinstance(cause, UNKNOWN_TOPIC | kafka.InvalidTopicError):
            return f"a topic is missing ({name}); make it with `longstream topics create`"
        if isinstance(cause, MISFITS):
            return (
                f"a record is larger than its topic takes ({name}); raise max.message.bytes there"
            )
    return f"{type(error).__name__}: {error}" if isinstance(error, kafka.KafkaError) else str(error)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, outermost first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def explained() -> str:
    """The exit codes for ``--help``."""
    lines = [f"{code}  {meaning}" for code, meaning in MEANINGS.items()]
    return "Exit codes:\n\n" + "\n\n".join(lines)
