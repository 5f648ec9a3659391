"""``longstream lag``: how far the workers are behind the input, per partition."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from operators.errors import LongstreamError
from pipelines.cli.output import Bootstrap, Config, Json, complaints, emit, show, table
from pipelines.config.fields import Settings
from pipelines.config.load import load_settings
from pipelines.kafka.tools import (
    CONNECT_SECONDS,
    CoordinatorNotAvailableError,
    KafkaError,
    Reader,
    TopicPartition,
    connection,
    no_broker,
)
from pipelines.kafka.topics import admin_client

READ_SECONDS = 10.0


@dataclass(frozen=True)
class PartitionLag:
    """``committed``: the next offset the group reads, None before its first commit. ``behind_s``: age
    of the oldest record it has not finished, None where there is none."""

    partition: int
    committed: int | None
    end: int
    lag: int
    behind_s: float | None = None


def lag(config: Config = None, bootstrap: Bootstrap = None, as_json: Json = False) -> None:
    """Show how many input records are not finished yet, per partition, and how old the oldest is."""
    with complaints("lag"):
        settings = load_settings(config, bootstrap=bootstrap)
        rows = read_lag(settings)
    if as_json:
        total = sum(row.lag for row in rows)
        emit({"group": settings.app_id, "topic": settings.topic_segments, "lag": total,
              "partitions": [asdict(row) for row in rows]})  # fmt: skip
        return
    shown = table("partition", "committed", "end", "lag", "behind")
    for row in rows:
        behind = "–" if row.behind_s is None else f"{row.behind_s:.0f} s"
        committed = "none" if row.committed is None else str(row.committed)
        shown.add_row(str(row.partition), committed, str(row.end), str(row.lag), behind)
    show(shown)
    show(f"{sum(row.lag for row in rows)} records of {settings.topic_segments} behind, "
         f"group {settings.app_id}")  # fmt: skip


def read_lag(settings: Settings, now: float | None = None) -> list[PartitionLag]:
    """Read committed offsets and ends from the broker. Raises LongstreamError without one."""
    topic = settings.topic_segments
    reader = Reader(settings, [topic], [])
    try:
        ends = {place.partition: at for place, at in reader.positions().items()}
        starts = {place.partition: at for place, at in reader.beginnings().items()}
        committed = _committed(settings)
        first = {number: committed.get(number, starts[number]) for number in ends}
        waiting = {n: max(at, starts[n]) for n, at in first.items() if at < ends[n]}
        stamps = _timestamps(reader, topic, waiting)
    except KafkaError as error:
        raise no_broker(settings, error) from error
    finally:
        reader.close()
    now_ms = (time.time() if now is None else now) * 1000
    return [
        PartitionLag(
            partition=number,
            committed=committed.get(number),
            end=ends[number],
            lag=max(0, ends[number] - max(first[number], starts[number])),
            behind_s=max(0.0, (now_ms - stamps[number]) / 1000) if number in stamps else None,
        )
        for number in sorted(ends)
    ]


def _committed(settings: Settings) -> dict[int, int]:
    """Partition -> next offset of the workers' group; nothing for a group that never committed."""
    groups: Any = {}
    with (
        admin_client(
            settings.bootstrap, CONNECT_SECONDS, connection(settings, "longstream-lag")
        ) as admin,
        suppress(CoordinatorNotAvailableError),  # a broker that never had a group
    ):
        groups = admin.list_group_offsets([settings.app_id])
    return {
        tp.partition: found.offset
        for tp, found in groups.get(settings.app_id, {}).items()
        if tp.topic == settings.topic_segments and found.offset >= 0
    }


def _timestamps(reader: Reader, topic: str, waiting: dict[int, int]) -> dict[int, float]:
    """Partition -> timestamp (ms) of the first record at or behind the offset."""
    if not waiting:
        return {}
    for number, offset in waiting.items():
        reader.seek(TopicPartition(topic, number), offset)
    stamps: dict[int, float] = {}
    deadline = time.monotonic() + READ_SECONDS
    while len(stamps) < len(waiting):
        for record in reader.poll(0.5):
            if record.partition in waiting:
                stamps.setdefault(record.partition, float(record.timestamp))
        if time.monotonic() > deadline:
            if not stamps:
                raise LongstreamError(f"no record of {topic} arrived in {READ_SECONDS:.0f} s")
            break
    return stamps
