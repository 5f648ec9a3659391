"""All topics read from their start, and how far the group has committed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pipelines.config.fields import Settings
from pipelines.kafka.tools import KafkaConsumer, KafkaError, TopicPartition, connection
from pipelines.lab.chaos.check import Record


def read_topics(
    settings: Settings,
    topics: Iterable[str],
    isolation: Literal["read_committed", "read_uncommitted"],
) -> list[Record]:
    """Every record of the topics, in the order of each partition."""
    consumer = KafkaConsumer(
        **connection(settings, "longstream-chaos-check"),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level=isolation,
        max_partition_fetch_bytes=settings.max_message_bytes,
        fetch_max_wait_ms=100,
    )
    try:
        places = [TopicPartition(t, p) for t in topics for p in range(settings.partitions)]
        consumer.assign(places)
        consumer.seek_to_beginning(*places)
        ends = consumer.end_offsets(places)
        found = []
        while any(consumer.position(place) < ends[place] for place in places):
            for records in consumer.poll(timeout_ms=500, max_records=5000).values():
                found += [
                    Record(
                        r.topic,
                        r.partition,
                        r.offset,
                        r.key,
                        r.value,
                        tuple(r.headers),
                        r.timestamp / 1000,
                    )
                    for r in records
                ]
        return found
    finally:
        consumer.close()


def write_records(records: Iterable[Record], path: Path) -> None:
    """As JSON lines, to look at by hand; a value that is no text is left out."""
    with path.open("w") as file:
        for record in records:
            value = (record.value or b"").decode(errors="replace")
            fields = {**record._asdict(), "key": (record.key or b"").decode(), "value": value}
            file.write(
                json.dumps({**fields, "headers": [name for name, _ in record.headers]}) + "\n"
            )


class Progress:
    """How far the group has committed its input, by topic and partition. A context manager."""

    def __init__(self, settings: Settings) -> None:
        self._places = [
            TopicPartition(topic, p)
            for topic in (settings.topic_segments, settings.topic_questions)
            for p in range(settings.partitions)
        ]
        self._consumer = KafkaConsumer(
            **connection(settings, "longstream-chaos-progress"),
            group_id=settings.app_id,  # to ask for its offsets only: it joins no group
            enable_auto_commit=False,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self._consumer.close(autocommit=False)

    def committed(self) -> dict[tuple[str, int], int]:
        """The offset of every partition, 0 where there is none; empty when the broker is busy."""
        try:
            return {tuple(place): self._consumer.committed(place) or 0 for place in self._places}
        except KafkaError:
            return {}

    def ends(self) -> dict[tuple[str, int], int]:
        found = self._consumer.end_offsets(self._places)
        return {tuple(place): offset for place, offset in found.items()}
