"""Kafka's errors: which of them waiting cannot mend, their causes, and their text for people."""

from __future__ import annotations

from collections.abc import Iterator

from aiokafka import errors as kafka

from operators.errors import ConfigError, LongstreamError

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
"""The login, or the access to a resource, was refused."""
UNKNOWN_TOPIC = kafka.UnknownTopicOrPartitionError
TOO_LARGE = (
    kafka.MessageSizeTooLargeError,
    kafka.RecordListTooLargeError,
    kafka.RecordTooLargeError,
)
"""A message, or the batch it is in, is larger than the topic takes."""
MISFITS = (kafka.InvalidTopicError, *TOO_LARGE, UNKNOWN_TOPIC)
"""A topic is missing, or too small for what is written to it."""


class BrokerUnavailable(LongstreamError):
    """Kafka did not answer within the time a worker waits for it."""


class TopicError(LongstreamError):
    """A topic could not be created, or an existing one does not have the expected shape."""


def is_permanent(error: BaseException) -> bool:
    """Whether a retry cannot succeed until a setting, a topic or an access right is changed.

    An unknown topic is not permanent: a broker that has just started may not know it yet.
    """
    known = (cause for cause in causes(error) if not isinstance(cause, UNKNOWN_TOPIC))
    return any(isinstance(cause, (*DENIALS, *MISFITS, ConfigError)) for cause in known)


def explain(error: BaseException) -> str:
    """One sentence for logs: the error, and what to do about it where that is known."""
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
    """The error and its chain of ``__cause__``, outermost first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__
