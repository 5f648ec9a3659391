"""Kafka away from a worker with nothing to do: said, forgiven, or the end. The clock is a script's."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiokafka.errors import SaslAuthenticationFailed

from operators.errors import ConfigError
from pipelines.config.load import Settings
from pipelines.kafka import health
from pipelines.kafka.errors import BrokerUnavailable
from pipelines.kafka.health import Brokers, watch
from pipelines.worker import exit_codes


class Script:
    """Answers in turn, each after so many seconds; ``told`` is what was said of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: tuple[float, bool]) -> None:
        self.now = 1000.0
        self.told: list[str | None] = []
        self._answers = iter(answers)
        monkeypatch.setattr(health.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(health.asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds

    async def answer(self) -> bool:
        seconds, answer = next(self._answers, (0.0, None))
        if answer is None:
            raise EOFError
        self.now += seconds
        return answer

    def run(self, patience_s: float) -> None:
        asyncio.run(watch(self.answer, self.told.append, patience_s=patience_s))


GOOD, REFUSED, HUNG = (0.0, True), (0.0, False), (10.0, False)


def test_a_short_absence_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, GOOD, REFUSED, REFUSED, GOOD)
    with pytest.raises(EOFError):
        script.run(300)
    assert script.told == []


def test_a_long_one_is_said_and_so_is_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(monkeypatch, GOOD, *[REFUSED] * 5, GOOD)
    with caplog.at_level(logging.INFO, "pipelines"), pytest.raises(EOFError):
        script.run(300)
    assert script.told == [
        "no broker of Kafka's has answered for 6 s",
        "no broker of Kafka's has answered for 8 s",
        None,
    ]
    away, back = (record.getMessage() for record in caplog.records)
    assert away.endswith("for 6 s; the worker ends after 300 s of it")
    assert back == "Kafka answers again after 10 s"


def test_patience_ends_with_the_exit_code_of_an_absent_kafka(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script(monkeypatch, GOOD, *[HUNG] * 99)
    with pytest.raises(BrokerUnavailable, match="for 34 s") as raised:
        script.run(30)
    assert exit_codes.code_of(raised.value) == exit_codes.BROKER


def test_absences_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, *[GOOD, HUNG, HUNG] * 20)
    with pytest.raises(EOFError):
        script.run(30)


def test_nobody_there_is_no_answer() -> None:
    async def body() -> None:
        brokers = Brokers(Settings(bootstrap="127.0.0.1:9", broker_patience_s=2))
        assert not await brokers.answer()
        await brokers.close()

    asyncio.run(body())


def test_time_in_which_the_worker_stood_still_is_no_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Frozen in the middle of a question, and between two."""
    script = Script(monkeypatch, GOOD, (600.0, False), REFUSED, GOOD)

    async def frozen(seconds: float) -> None:
        script.now += 600

    monkeypatch.setattr(health.asyncio, "sleep", frozen)
    with pytest.raises(EOFError):
        script.run(300)
    assert script.told[-1] is None


LOGIN = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "w", "sasl_password": "guess"}


@pytest.mark.parametrize("settings", [{}, LOGIN])
def test_a_login_that_is_refused_is_said_and_nobody_there_is_not(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    refusal = ConfigError("the Kafka there refuses the login")

    async def turned_away(_: Settings) -> ConfigError:
        refusal.__cause__ = SaslAuthenticationFailed() if settings else OSError("no TLS")
        return refusal

    monkeypatch.setattr(health, "turned_away", turned_away)

    async def body() -> None:
        brokers = Brokers(Settings(bootstrap="127.0.0.1:9", broker_patience_s=2, **settings))
        if settings:
            with pytest.raises(ConfigError, match="refuses the login") as raised:
                await brokers.answer()
            assert exit_codes.code_of(raised.value) == exit_codes.DENIED
        else:
            assert not await brokers.answer()

    asyncio.run(body())
