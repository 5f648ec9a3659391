"""Which exit code an error has, and whether waiting could help."""

from __future__ import annotations

import pytest
from aiokafka import errors as kafka

from operators.errors import ConfigError, DeviceError, LongstreamError, ModelError
from pipelines import exits
from pipelines.committer import CommitError
from pipelines.publishers import Retriable


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
        (ConfigError("x"), exits.CONFIG),
        (ModelError("x"), exits.MODEL),
        (DeviceError("x"), exits.DEVICE),
        (exits.Waited("x"), exits.BROKER),
        (RuntimeError("x"), exits.FAULT),
        (LongstreamError("x"), exits.FAULT),
        (caused(CommitError("x"), Retriable("x"), kafka.KafkaTimeoutError()), exits.BROKER),
        (caused(CommitError("x"), kafka.MessageSizeTooLargeError()), exits.CONFIG),
        (caused(CommitError("x"), kafka.TopicAuthorizationFailedError("t")), exits.DENIED),
        (caused(ConfigError("x"), kafka.SaslAuthenticationFailed()), exits.DENIED),
        (caused(LongstreamError("x"), DeviceError("x")), exits.DEVICE),
    ],
)
def test_the_most_telling_cause_gives_the_code(error: Exception, code: int) -> None:
    assert exits.code_of(error) == code


def test_waiting_helps_against_what_passes_only() -> None:
    for passing in (kafka.KafkaConnectionError(), kafka.UnknownTopicOrPartitionError()):
        assert not exits.hopeless(caused(CommitError("x"), passing))
    for lasting in (
        kafka.RecordListTooLargeError(),
        kafka.GroupAuthorizationFailedError("g"),
        ConfigError("more states than fit"),
    ):
        assert exits.hopeless(caused(CommitError("x"), Retriable("x"), lasting))


def test_every_code_is_explained_once() -> None:
    assert sorted(exits.MEANINGS) == list(range(7))
    assert all(
        f"{code}  {meaning}" in exits.explained() for code, meaning in exits.MEANINGS.items()
    )
