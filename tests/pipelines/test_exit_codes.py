"""Which exit code an error has, and whether waiting could help."""

from __future__ import annotations

import pytest
from aiokafka import errors as kafka

from operators.errors import ConfigError, DeviceError, LongstreamError, ModelError
from pipelines.kafka.errors import BrokerUnavailable, is_permanent
from pipelines.kafka.publishers import Retriable
from pipelines.worker import exit_codes
from pipelines.worker.partition.committer import CommitError


def caused(error: Exception, *causes: Exception) -> Exception:
    """``error``, raised from the first cause, which was raised from the next…"""
    at: Exception = error
    for cause in causes:
        at.__cause__ = cause
        at = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), exit_codes.CONFIG),
        (ModelError("x"), exit_codes.MODEL),
        (DeviceError("x"), exit_codes.DEVICE),
        (BrokerUnavailable("x"), exit_codes.BROKER),
        (RuntimeError("x"), exit_codes.FAULT),
        (LongstreamError("x"), exit_codes.FAULT),
        (caused(CommitError("x"), Retriable("x"), kafka.KafkaTimeoutError()), exit_codes.BROKER),
        (caused(CommitError("x"), kafka.MessageSizeTooLargeError()), exit_codes.CONFIG),
        (caused(CommitError("x"), kafka.TopicAuthorizationFailedError("t")), exit_codes.DENIED),
        (caused(ConfigError("x"), kafka.SaslAuthenticationFailed()), exit_codes.DENIED),
        (caused(LongstreamError("x"), DeviceError("x")), exit_codes.DEVICE),
    ],
)
def test_the_most_telling_cause_gives_the_code(error: Exception, code: int) -> None:
    assert exit_codes.code_of(error) == code


def test_waiting_helps_against_what_passes_only() -> None:
    for passing in (kafka.KafkaConnectionError(), kafka.UnknownTopicOrPartitionError()):
        assert not is_permanent(caused(CommitError("x"), passing))
    for lasting in (
        kafka.RecordListTooLargeError(),
        kafka.GroupAuthorizationFailedError("g"),
        ConfigError("more states than fit"),
    ):
        assert is_permanent(caused(CommitError("x"), Retriable("x"), lasting))


def test_every_code_is_explained_once() -> None:
    assert sorted(exit_codes.MEANINGS) == list(range(7))
    assert all(
        f"{code}  {meaning}" in exit_codes.explained()
        for code, meaning in exit_codes.MEANINGS.items()
    )
