"""A tiny Faust worker that leaves chosen offsets unfinished. Run by test_commit_regression.py:

    python -m tests.faust_commits stock|ours BOOTSTRAP TOPIC GROUP UNFINISHED,… LAST

Acknowledges everything on the topic except the offsets UNFINISHED, lets Faust commit a few times
after seeing offset LAST, and leaves without a goodbye, as a crash would.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from typing import Any

import faust

from pipelines.kafka.transport import LongstreamApp

COMMIT_SECONDS = 0.2


async def main(
    kind: str, bootstrap: str, topic: str, group: str, unfinished: str, last: str
) -> None:
    cls = {"stock": faust.App, "ours": LongstreamApp}[kind]
    app = cls(
        group,
        broker=f"kafka://{bootstrap}",
        broker_commit_interval=COMMIT_SECONDS,
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        datadir=f"/tmp/{group}",
        worker_redirect_stdouts=False,
    )
    source = app.topic(topic, value_serializer="raw", key_serializer="raw")
    leave = {int(offset) for offset in unfinished.split(",")}
    seen = asyncio.Event()
    in_work: list[Any] = []

    async def agent(stream: Any) -> None:
        async for event in stream.noack().events():
            if event.message.offset in leave:
                in_work.append(event)  # as a worker would: it is still busy with it
            else:
                event.ack()
            if event.message.offset == int(last):
                seen.set()

    app.agent(source)(agent)
    await app.start()
    await asyncio.wait_for(seen.wait(), 20)
    gc.collect()
    await asyncio.sleep(5 * COMMIT_SECONDS)
    sys.stderr.write(f"left open: {sorted(event.message.offset for event in in_work)}\n")
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
