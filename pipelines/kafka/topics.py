"""Topics made before anybody uses them, with the policies they need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import kafka.errors
from kafka import KafkaAdminClient
from kafka.admin import ConfigFilterType, ConfigResource, ConfigResourceType

from pipelines.config.fields import Settings
from pipelines.kafka.errors import TopicError

DAY_MS = 24 * 3600 * 1000
WEEK_MS = 7 * DAY_MS
DEFAULT_PARTITIONS = 4


@dataclass(frozen=True)
class TopicSpec:
    """One topic.

    ``compact`` keeps the last record of each key, for ever unless ``retention_ms`` is given. For the
    others ``retention_ms`` None leaves it to the broker's default (a week), -1 keeps all.
    ``max_message_bytes`` None leaves the broker's limit.
    """

    name: str
    compact: bool = False
    retention_ms: int | None = None
    max_message_bytes: int | None = 8 << 20

    def configs(self) -> dict[str, str]:
        """The topic's settings as Kafka names them."""
        configs = {"cleanup.policy": "compact" if self.compact else "delete"}
        if self.compact:
            # Only closed segments are compacted, and by default one stays open for a week: a worker
            # that reads its state from this topic would read a week of it.
            configs |= {"segment.ms": "3600000", "min.cleanable.dirty.ratio": "0.1"}
            # What was overwritten or deleted leaves the disk in about a day, however little is written.
            configs["max.compaction.lag.ms"] = str(DAY_MS)
        if self.retention_ms is not None:
            configs["retention.ms"] = str(self.retention_ms)
            if self.compact:
                configs["cleanup.policy"] = "compact,delete"
            elif 0 < self.retention_ms < WEEK_MS:
                # Files are deleted whole, and by default one is written to for a week.
                configs["segment.ms"] = str(self.retention_ms)
        if self.max_message_bytes is not None:
            configs["max.message.bytes"] = str(self.max_message_bytes)
        return configs


def topic_specs(settings: Settings) -> list[TopicSpec]:
    """The topics a worker needs, with the policies they need."""
    compacted = {settings.topic_summaries_latest, settings.topic_sessions}
    # State is deleted by tombstones once its stream has ended, never by its age alone.
    hours = {settings.topic_dlq: settings.dlq_retention_h, settings.topic_sessions: None}
    specs = []
    for name in settings.topics:
        kept = hours.get(name, settings.text_retention_h)
        specs.append(
            TopicSpec(
                name,
                compact=name in compacted,
                retention_ms=None if kept is None else int(kept * 3_600_000),
                max_message_bytes=settings.max_message_bytes,
            )
        )
    return specs


TOPICS = tuple(topic_specs(Settings.model_construct()))
"""With the names and limits of the settings' defaults."""


def create_topics(
    bootstrap: str,
    topics: Iterable[TopicSpec] = TOPICS,
    partitions: int = DEFAULT_PARTITIONS,
    *,
    replication_factor: int = -1,
    timeout: float = 30.0,
    login: Mapping[str, Any] | None = None,
) -> list[str]:
    """Create the topics that do not exist and return their names; existing ones are checked.

    Raises :class:`TopicError` if an existing topic has another number of partitions (keys would
    land elsewhere than their state) or another cleanup policy, or the broker refuses.
    ``replication_factor`` -1 is the broker's default. ``login``: what kafka-python's clients take
    for TLS and a login. Safe to call by several at the same time.
    """
    wanted = {topic.name: topic for topic in topics}
    try:
        with admin_client(bootstrap, timeout, login) as admin:
            created = _create(admin, list(wanted.values()), partitions, replication_factor)
            admin.wait_for_topics(list(wanted), timeout_ms=int(timeout * 1000))
            _check(admin, wanted, set(created), partitions)
    except kafka.errors.KafkaError as error:
        raise TopicError(f"topics could not be created at {bootstrap}: {error}") from error
    return created


def admin_client(
    bootstrap: str, timeout: float = 30.0, login: Mapping[str, Any] | None = None
) -> KafkaAdminClient:
    """An admin client of the broker; a context manager. The caller closes it."""
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap.split(","),
        "client_id": "longstream-admin",
        "request_timeout_ms": int(timeout * 1000),
        "bootstrap_timeout_ms": int(timeout * 1000),
    }
    return KafkaAdminClient(**options | dict(login or {}))


def _create(
    admin: KafkaAdminClient, topics: Sequence[TopicSpec], partitions: int, replicas: int
) -> list[str]:
    """Create what is missing; the names of those that this call created."""
    present = set(admin.list_topics())
    missing: dict[str, dict[str, Any]] = {
        topic.name: {
            "num_partitions": partitions,
            "replication_factor": replicas,
            "configs": topic.configs(),
        }
        for topic in topics
        if topic.name not in present
    }
    if not missing:
        return []
    created = []
    for answer in admin.create_topics(missing, raise_errors=False)["topics"]:
        error = kafka.errors.for_code(answer["error_code"])
        if error is kafka.errors.NoError:
            created.append(answer["name"])
        elif error is not kafka.errors.TopicAlreadyExistsError:
            reason = answer.get("error_message") or error.__name__
            raise TopicError(f"topic {answer['name']} could not be created: {reason}")
    return created


def _check(
    admin: KafkaAdminClient, wanted: dict[str, TopicSpec], created: set[str], partitions: int
) -> None:
    """Compare the topics that were there before with what is wanted of them."""
    existing = [name for name in wanted if name not in created]
    if not existing:
        return
    for topic in admin.describe_topics(existing):
        found = len(topic["partitions"])
        if found != partitions:
            raise TopicError(
                f"topic {topic['name']} has {found} partitions, {partitions} are needed: all topics"
                " keyed by stream must have the same number. Change the setting or use another name"
            )
    if problems := _wrong_policies(admin, [wanted[name] for name in existing]):
        raise TopicError(problems[0])


def wrong_policies(
    bootstrap: str,
    topics: Iterable[TopicSpec],
    *,
    timeout: float = 30.0,
    login: Mapping[str, Any] | None = None,
) -> list[str]:
    """A sentence for each existing topic whose cleanup policy is not the one that is needed.

    Raises :class:`TopicError` if the broker does not answer.
    """
    try:
        with admin_client(bootstrap, timeout, login) as admin:
            return _wrong_policies(admin, list(topics))
    except kafka.errors.KafkaError as error:
        raise TopicError(f"topics could not be checked at {bootstrap}: {error}") from error


def _wrong_policies(admin: KafkaAdminClient, topics: Sequence[TopicSpec]) -> list[str]:
    found = _cleanup_policies(admin, [topic.name for topic in topics])
    return [
        f"topic {topic.name} has cleanup.policy={found[topic.name]}, "
        f"{'compact' if topic.compact else 'delete'} is needed. Alter it or use another name"
        for topic in topics
        if topic.name in found and ("compact" in found[topic.name]) != topic.compact
    ]


def _cleanup_policies(admin: KafkaAdminClient, names: list[str]) -> dict[str, str]:
    """cleanup.policy of each topic; nothing where the broker does not tell (Tansu, or by ACL)."""
    resources = [
        ConfigResource(ConfigResourceType.TOPIC, name, ["cleanup.policy"]) for name in names
    ]
    try:
        answer = admin.describe_configs(resources, config_filter=ConfigFilterType.ALL)
    except kafka.errors.KafkaError:
        return {}
    return {
        name: configs["cleanup.policy"]["value"]
        for name, configs in answer.get("topic", {}).items()
        if "cleanup.policy" in configs
    }
