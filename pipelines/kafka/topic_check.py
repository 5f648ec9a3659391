"""The check of the topics before a worker starts: they exist, have the same number of partitions, and
take messages that are large enough."""

from __future__ import annotations

import asyncio
import logging
from math import inf
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from operators.errors import ConfigError
from pipelines.config.load import Settings
from pipelines.kafka.clients import client_options, turned_away
from pipelines.kafka.errors import BrokerUnavailable, TopicError, explain, is_permanent

log = logging.getLogger(__name__)

MESSAGE_LIMIT = "max.message.bytes"
ACCESS_DENIED = TopicAuthorizationFailedError.errno


async def check_topics(settings: Settings, timeout: float = 20.0) -> Settings:
    """Check that all topics exist with as many partitions as the input. Returns the settings with
    ``max_message_bytes`` lowered to what the topics take.

    Raises BrokerUnavailable when Kafka does not answer, TopicError when it refuses, ConfigError when
    the topics do not fit.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        async with asyncio.timeout(timeout):
            await admin.start()
            answer = await admin.describe_topics(list(settings.topics))
            limits = await _message_limits(admin, settings)
    except (KafkaError, TimeoutError) as error:
        if (refusal := await turned_away(settings)) is not None:
            raise refusal from refusal.__cause__
        if is_permanent(error):
            raise TopicError(f"{settings.bootstrap}: {explain(error)}") from error
        raise BrokerUnavailable(
            f"no Kafka at {settings.bootstrap} ({error or 'no answer'}); set LONGSTREAM_BOOTSTRAP, or "
            "start one with `longstream kafka`"
        ) from error
    finally:
        await admin.close()
    _check_partitions(settings, answer)
    return _within(settings, limits)


def _check_partitions(settings: Settings, answer: list[dict[str, Any]]) -> None:
    denied = [topic["topic"] for topic in answer if topic.get("error_code") == ACCESS_DENIED]
    if denied:
        denial = TopicAuthorizationFailedError(*denied)
        raise TopicError(f"{settings.bootstrap}: {explain(denial)}") from denial
    counts = {topic["topic"]: len(topic["partitions"]) for topic in answer}
    if missing := [name for name in settings.topics if not counts.get(name)]:
        raise ConfigError(
            f"no topic {', '.join(missing)} at {settings.bootstrap}; make them with "
            "`longstream topics create`"
        )
    wanted = counts[settings.topic_segments]
    if other := {name: count for name, count in counts.items() if count != wanted}:
        raise ConfigError(
            f"{settings.topic_segments} has {wanted} partitions, but "
            + ", ".join(f"{name} has {count}" for name, count in other.items())
            + ": all must have the same number. To make more of them stop the producers and call "
            "`longstream topics grow`"
        )


async def _message_limits(admin: AIOKafkaAdminClient, settings: Settings) -> dict[str, int | None]:
    """``max.message.bytes`` of the topics that are written to (the input is only read); None where the
    broker does not tell."""
    written = [name for name in settings.topics if name != settings.topic_segments]
    limits: dict[str, int | None] = dict.fromkeys(written)
    asked = [
        ConfigResource(ConfigResourceType.TOPIC, name, {MESSAGE_LIMIT: None}) for name in written
    ]
    try:
        answers = await admin.describe_configs(asked)
    except (KafkaError, NotImplementedError):  # a broker that does not know the question
        return limits
    for answer in answers:
        for error, _, _, topic, entries in answer.resources:
            values = [int(entry[1]) for entry in entries if entry[0] == MESSAGE_LIMIT]
            if error == 0 and values:
                limits[topic] = values[0]
    return limits


def _within(settings: Settings, limits: dict[str, int | None]) -> Settings:
    """Else the first large record would end the worker, and every one after it."""
    if untold := [name for name, limit in limits.items() if limit is None]:
        log.warning(
            "the broker does not say %s of %s (the right DescribeConfigs is needed to ask): if it is "
            "below max_message_bytes=%d, a large record will end this worker",
            MESSAGE_LIMIT,
            ", ".join(untold),
            settings.max_message_bytes,
        )
    told = {name: limit for name, limit in limits.items() if limit is not None}
    name, least = min(told.items(), key=lambda item: item[1], default=("", inf))
    if least >= settings.max_message_bytes:
        return settings
    if least <= settings.operator.max_text_bytes:
        raise ConfigError(
            f"{MESSAGE_LIMIT} of {name} is {least}, too small for segments of up to "
            f"operator.max_text_bytes={settings.operator.max_text_bytes}: raise one or lower the other"
        )
    log.warning(
        "%s of %s is %d: this worker writes no larger messages (max_message_bytes=%d)",
        MESSAGE_LIMIT,
        name,
        least,
        settings.max_message_bytes,
    )
    return settings.model_copy(update={"max_message_bytes": least})
