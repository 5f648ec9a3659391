"""Logins over TLS on a real broker: every command, both deliveries, and secrets that stay secret."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.worker.exit_codes import CONFIG, DENIED
from tests.kafka_settings import environment_of
from tests.secure_broker import PASSWORD, USER, SecureBroker, certificates
from tests.worker_process import Records, WorkerProcess, producer, wait_until, workers

ROOT = Path(__file__).parents[2]
TOKEN = "Marked-Token-77aa"


def login(secure: SecureBroker, mechanism: str = "SCRAM-SHA-512") -> dict[str, str]:
    """Settings of a login without its password."""
    return {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": mechanism,
        "sasl_username": USER,
        "ssl_cafile": str(secure.cafile),
    }


def command(topics: Any, settings: dict[str, str], *args: str) -> subprocess.Popen[str]:
    """A longstream command with these settings in its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.main", *args],
        cwd=ROOT,
        env=environment_of(topics, partitions="1", **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(started: subprocess.Popen[str], code: int = 0) -> str:
    """Everything a command said, once it has ended with ``code``; the password is not in it."""
    out, err = started.communicate(timeout=90)
    assert started.returncode == code, out + err
    assert PASSWORD not in out + err
    return out + err


@pytest.mark.parametrize(
    ("mechanism", "delivery"),
    [
        ("SCRAM-SHA-512", "exactly_once"),
        pytest.param("SCRAM-SHA-256", "at_least_once", marks=pytest.mark.slow),
    ],
)
def test_every_command_logs_in_and_the_worker_works(
    secure_kafka: SecureBroker, secure_topics: Any, tmp_path: Path, mechanism: str, delivery: str
) -> None:
    password = tmp_path / "password"
    password.write_text(f"{PASSWORD}\n")
    settings = {**login(secure_kafka, mechanism), "sasl_password_file": str(password)}
    topics, plain = secure_topics, secure_kafka.plain.bootstrap
    assert said(command(topics, settings, "topics", "create")).count(": created") == 8
    talk = tmp_path / "talk.txt"
    talk.write_text("one\ntwo\nthree\nFAIL four\n")
    with (
        workers(topics, tmp_path, delivery=delivery, operator__targets="fr", **settings) as start,
        Records(plain, topics.summaries, topics.translations, partitions=1) as seen,
    ):
        worker = start()
        assert "4 segments of 1 streams" in said(command(topics, settings, "replay", str(talk)))
        final = {"final"}
        wait_until(lambda: {e.status for e in seen.summaries()} >= final, 40, worker.log)
        assert [e.unit_id for e in seen.translations()][:1] == ["0-0"]
        watched = command(topics, settings, *["watch", "talk", "--from-beginning", "--until-end"])
        dead = command(topics, settings, "dlq", "ls", "--json")
        assert "three" in said(watched)
        assert json.loads(said(dead))["reason"] == "asked_for"
        assert worker.stop() == 0, worker.log
        assert PASSWORD not in worker.log


def test_a_plain_login_over_tls(secure_kafka: SecureBroker, secure_topics: Any) -> None:
    settings = {**login(secure_kafka, "PLAIN"), "sasl_password": PASSWORD}
    assert said(command(secure_topics, settings, "topics", "create")).count(": created") == 8


WRONG = {
    "password": ("refuses the login of 'ana'", ("worker", "topics create", "replay {file}")),
    "authority": ("is not trusted", ("worker", "watch a", "dlq ls")),
    "protocol": ("does not speak SASL_PLAINTEXT", ("worker", "topics create")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_who_is_turned_away_is_told_why_in_one_sentence(
    secure_kafka: SecureBroker, secure_topics: Any, tmp_path: Path, wrong: str
) -> None:
    settings = {**login(secure_kafka), "sasl_password": PASSWORD}
    if wrong == "password":
        settings["sasl_password"] = f"not-{PASSWORD}"
    elif wrong == "authority":
        settings["ssl_cafile"] = str(certificates(tmp_path)[0])
    else:
        settings["security_protocol"] = "SASL_PLAINTEXT"
        del settings["ssl_cafile"]
    sentence, commands = WRONG[wrong]
    file = tmp_path / "a.txt"
    file.write_text("hello\n")
    started = [
        command(secure_topics, settings, *line.format(file=file).split()) for line in commands
    ]
    for process, line in zip(started, commands, strict=True):
        code = DENIED if wrong == "password" else CONFIG
        lines = said(process, code).strip().splitlines()
        assert sentence in lines[-1]
        # A worker keeps a log, where its client reports each attempt.
        assert line == "worker" or len(lines) == 1, lines
        assert not any("Traceback" in text for text in lines)


def pages(worker: WorkerProcess, token: str) -> str:
    """What the worker's pages say, to someone with the token and to a stranger."""
    worker.wait_for_log("/metrics")
    url = worker.log.split("serving ")[1].split("/metrics")[0]
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        metrics = answer.read().decode()
    assert "longstream_build_info" in metrics
    return metrics + worker.get("/metrics") + worker.get("/ready") + worker.get("/live")


def test_secrets_are_nowhere_to_be_found(
    secure_kafka: SecureBroker, secure_topics: Any, tmp_path: Path
) -> None:
    """With the most talkative log, and the password in the environment, where it shows most easily."""
    settings = {**login(secure_kafka), "sasl_password": PASSWORD, "http_token": TOKEN}
    topics, plain = secure_topics, secure_kafka.plain.bootstrap
    said(command(topics, settings, "topics", "create"))
    names = (topics.segments, topics.summaries, topics.latest, topics.translations)
    with (
        workers(topics, tmp_path, operator__targets="fr", log_level="debug", **settings) as start,
        producer(plain) as made,
        Records(plain, *names, topics.sessions, topics.dlq, partitions=1) as seen,
    ):
        worker = start()
        for text in ("one", "FAIL two", "three", "four"):
            made.send(topics.segments, key=b"a", value=text.encode())
        made.send(topics.segments, key=b"a", value=b"\xff")
        made.flush()
        wait_until(lambda: len(seen.records[topics.summaries]) == 1, 40, worker.log)
        wait_until(lambda: len(seen.records[topics.dlq]) == 2, 10, worker.log)
        wait_until(lambda: len(seen.records[topics.sessions]) > 0, 10, worker.log)
        device = worker.device()
        assert not any(
            secret in value
            for value in (*device.environ().values(), *device.cmdline())
            for secret in (PASSWORD, TOKEN)
        )
        doors = psutil.Process(worker.process.pid).net_connections(kind="inet")
        listening = [door.laddr.ip for door in doors if door.status == psutil.CONN_LISTEN]
        assert listening == ["127.0.0.1"], "one port, for its pages, and Faust has none"
        assert not [d for d in device.net_connections(kind="inet") if d.status == "LISTEN"]
        places = {
            "pages": pages(worker, TOKEN),
            "command line": " ".join(psutil.Process(worker.process.pid).cmdline()),
            "records": repr(dict(seen.records)),
            "help": said(command(topics, settings, "worker", "--help")),
            "a mistake": said(command(topics, {**settings, "threads": "x"}, "worker"), code=2),
        }
        assert worker.stop() == 0, worker.log
        places["log"] = worker.log
        assert "LONGSTREAM_SASL_PASSWORD" in places["help"]
        assert len(places["log"]) > 2000
        for place, text in places.items():
            assert PASSWORD not in text, place
            assert TOKEN not in text, place
