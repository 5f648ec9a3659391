"""What ``longstream bench pipeline`` compares: our worker's no-op operator, and two plain copies.

    python -m pipelines.lab.benchmarks.pipeline_sides aiokafka|faust exactly_once|at_least_once \\
        BOOTSTRAP INPUT OUTPUT GROUP COMMIT_SECONDS

copies values and keys from one topic to the other until it is stopped, each as the library's users would
write it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import Any

import msgspec

from operators.config import OperatorConfig
from operators.events import Covers, Segment, Source, TranslationEvent
from operators.observer import Observer
from operators.state import Emission, SessionState
from pipelines.device import protocol


def make_noop(
    load: protocol.Load, config: OperatorConfig, observer: Observer
) -> tuple[Any, protocol.Ready]:
    """For LONGSTREAM_TEST_OPERATOR: one event per segment, with the segment's text."""
    ready = protocol.Ready(
        model="no-op",
        device="none",
        dtype_prefill="none",
        dtype_decode="none",
        slots=config.slots,
        bytes_per_stream=1,
        bytes_total=1,
    )
    return Noop(), ready


class Noop:
    """Copies. Keeps what exactly-once needs, the cursor and the revision, and nothing else."""

    def __init__(self) -> None:
        self._states: dict[str, SessionState] = {}
        self._queue: deque[tuple[Segment, int]] = deque()

    def open(
        self, stream_id: str, state: SessionState | None = None, snapshot: bytes | None = None
    ) -> None:
        self._states[stream_id] = state or SessionState(stream_id=stream_id)

    def quiet(self, stream_id: str) -> bool:
        return False

    def snapshot(self, stream_id: str) -> bytes:
        raise NotImplementedError("a copy has no memory")

    def feed(self, segment: Segment, ticket: int, waited: float = 0.0) -> None:
        self._queue.append((segment, ticket))

    def drop(self, stream_id: str) -> None:
        del self._states[stream_id]
        self._queue = deque(pair for pair in self._queue if pair[0].stream_id != stream_id)

    def close(self) -> None:
        self._states.clear()

    def has_work(self) -> bool:
        return bool(self._queue)

    def idle_until(self) -> float | None:
        return None

    def step(self) -> list[Emission]:
        segment, ticket = self._queue.popleft()
        state = self._states[segment.stream_id]
        seq = segment.seq or 0
        revision = state.revisions.get("translation:xx", 0)
        state = msgspec.structs.replace(
            state,
            cursor=ticket,
            next_seq=seq + 1,
            revisions={"translation:xx": revision + 1},
        )
        self._states[segment.stream_id] = state
        event = TranslationEvent(
            event_id=f"{segment.stream_id}-{revision}",
            stream_id=segment.stream_id,
            epoch=state.epoch,
            revision=revision,
            source_lang="xx",
            target_lang="xx",
            unit_id=segment.segment_id,
            committed=segment.text,
            is_final=True,
            source_segment_ids=(segment.segment_id,),
            covers=Covers(to_seq=seq, to_segment_id=segment.segment_id),
            source=Source(first_offset=ticket, last_offset=ticket),
        )
        return [Emission(stream_id=segment.stream_id, state=state, events=[event], done=[ticket])]


async def aiokafka_copy(
    mode: str, bootstrap: str, source: str, target: str, group: str, every: float
) -> None:
    """One consumer, one producer; a transaction, or a flush and an offset commit, per interval."""
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    exactly = mode == "exactly_once"
    consumer = AIOKafkaConsumer(
        source, bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False,
        auto_offset_reset="earliest", max_poll_records=1000,
    )  # fmt: skip
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", transactional_id=f"{group}-tx" if exactly else None
    )
    await producer.start()
    await consumer.start()
    loop = asyncio.get_running_loop()
    while True:
        if exactly:
            await producer.begin_transaction()
        ends: dict[Any, int] = {}
        until = loop.time() + every
        while (left := until - loop.time()) > 0 and len(ends) < 100_000:
            batches = await consumer.getmany(timeout_ms=max(1, int(left * 1000)))
            for partition, records in batches.items():
                for record in records:
                    await producer.send(
                        target, record.value, record.key, partition=partition.partition
                    )
                ends[partition] = records[-1].offset + 1
        if not exactly:
            await producer.flush()
            if ends:
                await consumer.commit(ends)
            continue
        if ends:
            await producer.send_offsets_to_transaction(ends, group)
        await producer.commit_transaction()


async def faust_copy(
    mode: str, bootstrap: str, source: str, target: str, group: str, every: float
) -> None:
    """One agent that sends what it gets, Faust as it comes."""
    import faust

    app = faust.App(
        group,
        broker=f"kafka://{bootstrap}",
        broker_commit_interval=every,
        consumer_auto_offset_reset="earliest",
        processing_guarantee=mode,
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        web_enabled=False,
        datadir=f"/tmp/{group}",  # noqa: S108  # nosec B108
        worker_redirect_stdouts=False,
    )
    raw = {
        "key_type": bytes,
        "value_type": bytes,
        "key_serializer": "raw",
        "value_serializer": "raw",
    }
    given, taken = app.topic(source, **raw), app.topic(target, **raw)

    async def copy(stream: Any) -> None:
        async for event in stream.events():
            await taken.send(key=event.key, value=event.value, partition=event.message.partition)

    app.agent(given, name="copy")(copy)
    await app.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    side, *arguments, interval = sys.argv[1:]
    given_mode, servers, inputs, outputs, name = arguments
    copies = {"aiokafka": aiokafka_copy, "faust": faust_copy}
    asyncio.run(copies[side](given_mode, servers, inputs, outputs, name, float(interval)))
