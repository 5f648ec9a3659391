"""Notices that Kafka is away, also while there is nothing to fetch or commit.

aiokafka waits for its brokers without end, and an idle worker has nothing whose failure would tell. So
any broker of the cluster is asked for the list of brokers now and then. Nobody answering is said in
the log and on ``/ready`` after a while, and so is the first answer after it; ``broker_patience_s``
without one ends the worker as a commit that is not taken in that time does: with
:class:`pipelines.exits.Waited`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from pipelines.clients import client_options
from pipelines.exits import Waited
from pipelines.settings import Settings

log = logging.getLogger(__name__)

ASK_SECONDS = 2.0
ANSWER_SECONDS = 10.0
SILENCE_SECONDS = 5.0
"""How long nobody answers before it is said: an election or a restart is no news."""


class Brokers:
    """One connection of its own to the cluster, made anew when it is lost."""

    def __init__(self, settings: Settings) -> None:
        self._options = client_options(settings)
        self._topic = settings.topic_segments
        self._timeout_s = min(ANSWER_SECONDS, settings.broker_patience_s)
        self._client: AIOKafkaClient | None = None

    async def answer(self) -> bool:
        """Whether a broker answers now, whatever it says. Never raises an error of Kafka's."""
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._client is not None and await self._client.force_metadata_update():
                    return True
                await self.close()
                self._client = AIOKafkaClient(**self._options)
                await self._client.bootstrap()
                # Asked for no topic in particular, a broker would list all of the cluster's.
                return bool(await self._client.add_topic(self._topic))
        except (KafkaError, TimeoutError, OSError):
            await self.close()
            return False

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


async def watch(
    answer: Callable[[], Awaitable[bool]],
    tell: Callable[[str | None], None],
    *,
    patience_s: float,
) -> None:
    """Ask for ever. ``tell`` gets in words that nobody answers, and None when somebody does again.

    Raises Waited after ``patience_s`` seconds without an answer. They count from the first question
    that got none: a worker that was itself frozen for long has not asked.
    """
    silent_since: float | None = None
    told = False
    while True:
        asked = time.monotonic()
        if await answer():
            if told:
                log.info("Kafka answers again after %.0f s", asked - (silent_since or asked))
                tell(None)
            silent_since, told = None, False
        else:
            silent_since = silent_since or asked
            silence = time.monotonic() - silent_since
            if silence > patience_s:
                raise Waited(
                    f"no broker of Kafka's has answered for {silence:.0f} s (broker_patience_s): "
                    "is it running, and can it be reached from here?"
                )
            if silence >= min(SILENCE_SECONDS, patience_s / 2):
                words = f"no broker of Kafka's has answered for {silence:.0f} s"
                if not told:
                    log.warning("%s; the worker ends after %.0f s of it", words, patience_s)
                told = True
                tell(words)
        await asyncio.sleep(min(ASK_SECONDS, patience_s / 4))
