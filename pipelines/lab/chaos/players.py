"""Who takes part: worker processes with the one that looks after them, the speakers, the broker."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import psutil

from pipelines.config.fields import Settings
from pipelines.dev.broker import Broker
from pipelines.kafka.tools import KafkaError, KafkaProducer, connection, partition_for
from pipelines.lab.chaos.watching import Assignment

PR_SET_PDEATHSIG = 1
HTTP_SECONDS = 1.0
BROKER_SECONDS = 60.0
END_EVERY = 60
"""A stream ends, and begins again as another epoch, after about so many segments."""
ODD_SHARE = 0.1
"""Of records without a key, and of those in a frame."""
ASK_SHARE = 0.05
"""Of segments that are followed by a question; one also comes just before and after each end."""
FRAME = b"\x00" + (200).to_bytes(4)
"""A schema registry's: a zero byte and the schema's number."""
WORDS = ("monday", "plan", "ana", "sends", "we", "meet", "to", "talk", "about", "it", "later")

_ASSIGNED = re.compile(r"^(\S+) .*assigned partitions \[([\d, ]*)\]")
_RESTORES = re.compile(r'^longstream_kv_restores_total\{.*kind="(\w+)".*\} (\S+)', re.MULTILINE)
_COMMITS = re.compile(r"^longstream_commit_seconds_(count|sum)\{.*\} (\S+)", re.MULTILINE)
_SERVING = re.compile(r"serving (http://[\d.:]+)/metrics")


class Process:
    """One ``longstream worker``; its log is a file, which tells its assignments and its address."""

    def __init__(self, name: str, environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self.frozen_until: float | None = None
        self.leaving = False
        self.restores: dict[str, float] = {}
        self.commits: tuple[float, float] = (0.0, 0.0)
        """How many commits its counters tell of, and the seconds they took in all."""
        self._device: psutil.Process | None = None
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli.main", "worker"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_inherited(), **environment, "LONGSTREAM_WORKER": name},
                process_group=0,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def working(self) -> bool:
        """It runs, is not frozen, and has joined its group."""
        running = self.exit_code is None and self.frozen_until is None
        return running and not self.leaving and bool(self.assignments())

    def assignments(self) -> list[Assignment]:
        """What its log says it was assigned, in order."""
        found = []
        for line in self.log.splitlines():
            if match := _ASSIGNED.match(line):
                at = datetime.fromisoformat(match[1]).timestamp()
                numbers = frozenset(int(n) for n in match[2].split(",") if n.strip())
                found.append(Assignment(at, self.name, numbers))
        return found

    def device(self) -> psutil.Process | None:
        """Its device process, if it has one now."""
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.pid).children()
            return children[0] if children else None
        return None

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def freeze(self, until: float, *, device: bool) -> None:
        """Stop it, with its device or without, until :meth:`thaw`."""
        self._device = self.device() if device else None
        self.send(signal.SIGSTOP)
        if self._device is not None:
            with contextlib.suppress(psutil.Error):
                self._device.suspend()
        self.frozen_until = until

    def thaw(self) -> None:
        if self._device is not None:
            with contextlib.suppress(psutil.Error):
                self._device.resume()
        self.send(signal.SIGCONT)
        self.frozen_until = None

    def read_metrics(self) -> None:
        """Ask its /metrics for restores and commits; keeps the last answer it got."""
        if self.frozen_until is not None or not (serving := _SERVING.search(self.log)):
            return
        url = f"{serving[1]}/metrics"
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(url, timeout=HTTP_SECONDS) as answer,  # noqa: S310  # nosec B310
        ):
            page = answer.read().decode()
            self.restores = {k: float(v) for k, v in _RESTORES.findall(page)}
            commits = {k: float(v) for k, v in _COMMITS.findall(page)}
            self.commits = commits.get("count", 0.0), commits.get("sum", 0.0)

    def cpu_seconds(self) -> float:
        """Processor time of the worker itself, without its device."""
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(self.pid).cpu_times()
            return float(times.user + times.system)
        return 0.0

    def end(self) -> None:
        """Make sure that it is gone."""
        if self.exit_code is None:
            self.thaw()
            self._process.kill()
        self._process.wait()


class Fleet:
    """Keeps a number of workers running, as an orchestrator would: one that died is replaced."""

    def __init__(self, environment: Mapping[str, str], folder: Path, seed: int) -> None:
        self._environment = environment
        self._folder = folder
        self._rng = random.Random(seed)  # noqa: S311  # nosec B311
        self._replace_at: list[float] = []
        self._lock = threading.Lock()
        self.wanted = 0
        self.all: list[Process] = []

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.all if process.exit_code is None]

    @property
    def working(self) -> list[Process]:
        return [process for process in self.alive if process.working]

    @property
    def frozen(self) -> list[Process]:
        return [process for process in self.alive if process.frozen_until is not None]

    def stranger(self) -> Process:
        """A worker of another application on the same topics; not one of those that are kept running."""
        environment = {**self._environment, "LONGSTREAM_APP_ID": "stranger"}
        return Process("stranger", environment, self._folder)

    def start(self) -> Process:
        process = Process(f"w{len(self.all) + 1}", self._environment, self._folder)
        with self._lock:
            self.all.append(process)
        return process

    def look_after(self, say: Callable[[str], None]) -> None:
        """Wake zombies whose time is over, replace the dead. Call it often."""
        now = time.monotonic()
        for process in self.alive:
            if process.frozen_until is not None and now >= process.frozen_until:
                process.thaw()
                say(f"{process.name} wakes up")
        missing = self.wanted - sum(not process.leaving for process in self.alive)
        while missing > len(self._replace_at):
            self._replace_at.append(now + self._rng.uniform(0.5, 3.0))
        due = [at for at in self._replace_at if at <= now]
        self._replace_at = [at for at in self._replace_at if at > now][: max(0, missing - len(due))]
        for _ in due[:missing]:
            say(f"{self.start().name} starts")

    def watch_metrics(self, stopped: threading.Event) -> None:
        """Read the workers' counters until told to stop; for a thread of its own."""
        while not stopped.wait(0.5):
            with self._lock:
                alive = [process for process in self.all if process.exit_code is None]
            for process in alive:
                process.read_metrics()

    def commits(self) -> tuple[int, float]:
        """Commits of all workers, and the mean seconds of one, as far as their counters were read."""
        count = sum(process.commits[0] for process in self.all)
        return int(count), sum(process.commits[1] for process in self.all) / max(1.0, count)

    def cpu_seconds(self) -> float:
        return sum(process.cpu_seconds() for process in self.alive)

    def restores(self, kind: str) -> int:
        """Streams brought back, over all workers, as far as their counters were read."""
        return int(sum(process.restores.get(kind, 0) for process in self.all))

    def assignments(self) -> list[Assignment]:
        return sorted(found for process in self.all for found in process.assignments())

    def end(self) -> None:
        for process in self.all:
            process.end()


class Stored(NamedTuple):
    """A segment that the broker has acknowledged, when, and where it lies."""

    at: float
    stream: str
    segment_id: str
    partition: int
    offset: int


class Asked(NamedTuple):
    """A question that the broker has acknowledged, and where it lies."""

    question_id: str
    partition: int
    offset: int


class Speakers(threading.Thread):
    """Everybody speaks: ``rate`` segments a second over all streams, until :meth:`finish`.

    Each stream sometimes ends and begins again. Finishing ends them all, but for those of ``silences``:
    they say so many segments and then nothing more, not even that they end. Those that fall silent after
    one segment say it at once. Some records have no key, some a schema registry's frame. Questions are
    asked about streams that speak, that end at the same moment, that have ended and that are unknown.
    ``before``: speakers who have paused, whose streams are continued.
    """

    def __init__(
        self,
        settings: Settings,
        streams: Sequence[str],
        silences: Mapping[str, int],
        rate: float,
        seed: int,
        before: Speakers | None = None,
    ) -> None:
        super().__init__(daemon=True, name="speakers")
        self._topic, self._rate = settings.topic_segments, rate
        self._questions = settings.topic_questions
        self._partitions = settings.partitions
        self._rng = random.Random(seed)  # noqa: S311  # nosec B311
        self._forms = random.Random(f"{seed} forms")  # noqa: S311  # nosec B311
        self._talking = list(streams)
        self._silences = silences
        self._said = dict.fromkeys(streams, 0)
        self._stopped = threading.Event()
        self._ending = True
        self._number = 0
        self.stored: list[Stored] = []
        self.asked: list[Asked] = []
        if before is not None:
            self._said, self._talking, self._number = before._said, before._talking, before._number
            self.stored, self.asked = before.stored, before.asked
        self.failure: BaseException | None = None
        self._producer = KafkaProducer(
            **connection(settings, "longstream-chaos"),
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            delivery_timeout_ms=300_000,
            request_timeout_ms=10_000,
            max_block_ms=300_000,
            reconnect_backoff_max_ms=1000,
            allow_auto_create_topics=False,
        )

    def run(self) -> None:
        try:
            self._speak()
        except BaseException as error:
            self.failure = error

    def _speak(self) -> None:
        for name, count in self._silences.items():
            if count == 1 and not self._said[name]:
                self._say(name)
        due = time.monotonic()
        while not self._stopped.is_set():
            self._say(self._rng.choice(self._talking))
            due += self._rng.expovariate(self._rate)
            self._stopped.wait(max(0.0, due - time.monotonic()))
        for name in sorted(self._said.keys() - self._silences.keys()) if self._ending else ():
            self._end(name)
        self._producer.flush(timeout=BROKER_SECONDS)

    def _say(self, name: str) -> None:
        number = self._said[name]
        self._said[name] += 1
        words = " ".join(self._rng.choices(WORDS, k=2))
        self._send(name, {"segment_id": f"{name}/{number}", "text": f"{number} {words}"})
        if self._said[name] == self._silences.get(name):
            self._talking.remove(name)
        elif self._rng.random() < 1 / END_EVERY:
            self._end(name)
        elif self._forms.random() < ASK_SHARE:
            self._ask(self._forms.choice([*self._said, "unknown"]))

    def _end(self, name: str) -> None:
        """With a question on either side: one that may meet the end on its way, and one behind it."""
        self._ask(name)
        self._send(name, {"type": "session_end"})
        self._ask(name)

    def _ask(self, name: str) -> None:
        self._number += 1
        question_id, place = f"q{self._number}", partition_for(name, self._partitions)
        kind = self._forms.choice(("free", "catch_up"))
        text = " ".join(self._forms.sample(WORDS, k=3))
        fields = {"stream_id": name, "question_id": question_id, "kind": kind, "text": text}
        value = json.dumps(fields).encode()
        future = self._producer.send(
            self._questions, key=name.encode(), value=value, partition=place
        )
        future.add_callback(
            lambda meta: self.asked.append(Asked(question_id, meta.partition, meta.offset))
        )
        future.add_errback(self._failed)

    def _send(self, name: str, fields: dict[str, str]) -> None:
        value = json.dumps({"stream_id": name, **fields}).encode()
        place, form = partition_for(name, self._partitions), self._forms.random()
        key = None if form < ODD_SHARE else name.encode()
        if form > 1 - ODD_SHARE:
            value = FRAME + value
        future = self._producer.send(self._topic, key=key, value=value, partition=place)
        if segment_id := fields.get("segment_id"):
            future.add_callback(
                lambda meta: self.stored.append(
                    Stored(time.time(), name, segment_id, meta.partition, meta.offset)
                )
            )
        future.add_errback(self._failed)

    def _failed(self, error: BaseException) -> None:
        self.failure = error

    def last_words(self) -> dict[str, str]:
        """Of the streams that fell silent: the segment that a summary must cover at last. One that ended
        of itself before owes nothing more, but covers it as well."""
        said = self._said.items()
        return {name: f"{name}/{n - 1}" for name, n in said if n and name in self._silences}

    def resumed(self, settings: Settings) -> Speakers:
        """Speakers of the same streams, for when these have paused; on the partitions there are then."""
        return Speakers(
            settings, list(self._said), self._silences, self._rate, self._number, before=self
        )

    def finish(self, *, ending: bool = True) -> None:
        """Say the last words and wait until they are stored; with ``ending`` streams say that they end.
        Raises what went wrong, if it did."""
        self._ending = ending
        self._stopped.set()
        self.join(2 * BROKER_SECONDS)
        with contextlib.suppress(KafkaError):
            self._producer.close(timeout=5)
        if self.failure is not None:
            raise self.failure


def break_broker(broker: Broker, *, gently: bool) -> None:
    """End the broker, by SIGKILL or in order, and start it again on the same port and data."""
    pid = getattr(broker, "pid", None)
    if gently and pid:
        os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(psutil.Error):
            psutil.Process(pid).wait(BROKER_SECONDS)
    broker.kill()
    broker.restart()


def _inherited() -> dict[str, str]:
    """Our environment, of longstream's own variables only where models and programs are found."""
    kept = ("LONGSTREAM_CACHE", "LONGSTREAM_GGUF_DIR", "LONGSTREAM_MODEL_SHA256")
    return {k: v for k, v in os.environ.items() if not k.startswith("LONGSTREAM_") or k in kept}


def _die_with_parent() -> None:
    """Linux: a worker must not outlive a chaos run that was itself killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
