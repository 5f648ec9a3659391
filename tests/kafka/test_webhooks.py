"""Webhooks on a real broker: a target that fails, one that refuses, and a process that is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipelines.wire.codec import encode_event
from tests.kafka_settings import environment_of
from tests.pipelines.gateway import item, summary
from tests.worker_process import Records, producer, wait_until

ROOT = Path(__file__).parents[2]


class Target:
    """Takes notes over HTTP; what it says to them may be changed at any time."""

    def __init__(self) -> None:
        self.status = 200
        self.taken: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        target = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                note = json.loads(self.rfile.read(int(self.headers["content-length"])))
                assert self.headers["webhook-id"] == note["event_id"]
                (target.taken if target.status == 200 else target.refused).append(note)
                self.send_response(target.status)
                self.end_headers()

            def log_message(self, *parts: object) -> None:
                pass

        return Handler

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def posting(topics: Any, hooks: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``longstream webhooks`` and the address of its metrics."""
    process = subprocess.Popen(
        [
            *[sys.executable, "-m", "pipelines.cli.main", "webhooks", str(hooks)],
            *["--metrics-port", "0", "--json"],
        ],
        cwd=ROOT,
        env=environment_of(topics),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = json.loads(process.stdout.readline())
        yield process, f"http://127.0.0.1:{said['metrics_port']}/metrics"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def body(record: Any) -> Any:
    return json.loads(record.value)


def number(url: str, name: str) -> float:
    with urllib.request.urlopen(url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"longstream_{name}"))


def test_at_least_once_through_a_failing_target_and_a_kill(topics: Any, tmp_path: Path) -> None:
    topics.create(2)
    good, gone = Target(), Target()
    gone.status = 410
    secret = tmp_path / "secret"
    secret.write_text("a-secret-of-both-hooks")
    hooks = tmp_path / "hooks.toml"
    hooks.write_text(
        "".join(
            f'[[webhook]]\nname = "{name}"\nurl = "{target.url}"\nsecret_file = "{secret}"\n'
            'kinds = ["decision"]\nallow_private = true\n'
            for name, target in (("good", good), ("gone", gone))
        )
    )
    revision = 0

    def decide(made: Any, text: str) -> None:
        nonlocal revision
        revision += 1
        event = summary(revision, item(revision, text, last_changed_revision=revision))
        made.send(topics.summaries, key=b"s", value=encode_event(event))
        made.flush()

    def texts(notes: Iterable[dict[str, Any]]) -> list[str]:
        return [note["item"]["text"] for note in list(notes)]

    try:
        with (
            producer(topics.bootstrap) as made,
            Records(topics.bootstrap, topics.dlq, partitions=2) as dead,
        ):
            with posting(topics, hooks) as (process, metrics):
                # A new group begins with what comes from then on; nobody says when that is.
                def begun() -> bool:
                    decide(made, "begin")
                    time.sleep(0.3)
                    return "begin" in texts(good.taken) and "begin" in texts(gone.refused)

                wait_until(begun, 60)
                # One that refuses for good: a dead letter each, and the other hook is not held up.
                decide(made, "We ship on Friday")
                wait_until(lambda: "We ship on Friday" in texts(good.taken), 30)
                letters = dead.records[topics.dlq]
                wait_until(lambda: "We ship on Friday" in texts(map(body, list(letters))), 30)
                headers = dict(letters[-1].headers)
                assert headers["webhook"] == b"gone"
                assert headers["longstream.dlq.stage"] == b"webhook"
                buried, taken = (f"webhook_{n}_total" for n in ("dead_letters", "deliveries"))
                wait_until(
                    lambda: (
                        number(metrics, f'{buried}{{hook="gone"}}') == len(letters)
                        and number(metrics, f'{taken}{{hook="good"}}') == len(good.taken)
                    ),
                    10,
                )
                assert number(metrics, f'{taken}{{hook="gone"}}') == 0
                # One that fails for a while is asked again, with the same id; killed meanwhile.
                good.status = 503
                decide(made, "Ana writes it down")
                wait_until(lambda: texts(good.refused).count("Ana writes it down") >= 2, 30)
                assert number(metrics, "webhook_failures_total") >= 2
                process.kill()
            good.status = 200
            with posting(topics, hooks):
                wait_until(lambda: "Ana writes it down" in texts(good.taken), 60)
            ids = {n["event_id"] for n in good.refused + good.taken if n["revision"] == revision}
            assert len(ids) == 1
            assert texts(good.taken).count("We ship on Friday") == 1  # its offset was committed
    finally:
        good.close()
        gone.close()
