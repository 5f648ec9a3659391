"""Notices that Kafka is away, also while there is nothing to fetch or commit.

aiokafka waits for its brokers without end, and an idle worker has nothing whose failure would tell. So
any broker of the cluster is asked for the list of brokers now and then. Nobody answering is said in
the log and on ``/ready`` after a while, and so is the first answer after it; ``broker_patience_s``
without one ends the worker as a commit that is not taken in that time does: with
:class:`pipelines.kafka.errors.BrokerUnavailable`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, SaslAuthenticationFailed

from pipelines.config.load import Settings
from pipelines.kafka.clients import client_options, turned_away
from pipelines.kafka.errors import BrokerUnavailable

log = logging.getLogger(__name__)

ASK_SECONDS = 2.0
ANSWER_SECONDS = 10.0
SILENCE_SECONDS = 5.0
"""How long nobody answers before it is said: an election or a restart is no news."""


class Brokers:
    """One connection of its own to the cluster, made anew when it is lost."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._options = settings, client_options(settings)
        self._topic = settings.topic_segments
        self._timeout_s = min(ANSWER_SECONDS, settings.broker_patience_s)
        self._client: AIOKafkaClient | None = None

    async def answer(self) -> bool:
        """Whether a broker answers now. Raises ConfigError when one does and refuses the login; no error
        of Kafka's otherwise."""
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
        await self._look_for_refusal()
        return False

    async def _look_for_refusal(self) -> None:
        """The client tells a login that is refused from nobody there in its own log only."""
        if self._settings.sasl_password is None:
            return
        refusal = await turned_away(self._settings)
        if refusal is not None and isinstance(refusal.__cause__, SaslAuthenticationFailed):
            raise refusal

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
    """Query the brokers for ever. ``tell`` receives a sentence when none answers, None when one does.

    Raises BrokerUnavailable after ``patience_s`` seconds without an answer. A query and a pause count
    for no longer than they may take: a worker that was itself frozen has not asked meanwhile.
    """
    answer_s, pause_s = min(ANSWER_SECONDS, patience_s), min(ASK_SECONDS, patience_s / 4)
    silence: float | None = None
    told = False
    while True:
        asked = time.monotonic()
        if await answer():
            if told:
                log.info("Kafka answers again after %.0f s", silence)
                tell(None)
            silence, told = None, False
        else:
            silence = (silence or 0.0) + min(time.monotonic() - asked, answer_s)
            if silence > patience_s:
                raise BrokerUnavailable(
                    f"no broker of Kafka's has answered for {silence:.0f} s (broker_patience_s): "
                    "is it running, and can it be reached from here?"
                )
            if silence >= min(SILENCE_SECONDS, patience_s / 2):
                words = f"no broker of Kafka's has answered for {silence:.0f} s"
                if not told:
                    log.warning("%s; the worker ends after %.0f s of it", words, patience_s)
                told = True
                tell(words)
        await asyncio.sleep(pause_s)
        if silence is not None:
            silence += pause_s
