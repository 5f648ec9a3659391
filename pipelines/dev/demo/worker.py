"""The worker the demo starts: a real ``longstream worker`` process, its log and its metrics."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

from operators.errors import DeviceError
from pipelines.config.load import Settings, load_settings

HTTP_SECONDS = 2.0
STOP_SECONDS = 20.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Measured:
    """Numbers of the worker's /metrics page; None where it does not say (yet)."""

    generated: float | None = None
    drafts: float | None = None
    draft_tokens: float | None = None
    accepted: float | None = None
    kv_bytes_per_stream: float | None = None
    processed: float | None = None
    """Tokens that the model has read and written: grows as long as it works."""

    @property
    def acceptance(self) -> float | None:
        """Share of draft tokens that were accepted."""
        return (self.accepted or 0) / self.draft_tokens if self.draft_tokens else None

    @property
    def mean_accepted_length(self) -> float | None:
        """Tokens per verify: 1 + accepted / drafts. 1 if the worker counts and nothing is drafted."""
        if self.drafts:
            return 1 + (self.accepted or 0) / self.drafts
        return None if self.generated is None else 1.0


def parse_page(page: str) -> dict[str, float]:
    """All numbers of a Prometheus text page by name, summed over labels."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def parse_metrics(page: str) -> Measured:
    """The numbers above from a Prometheus text page."""
    sums = parse_page(page)
    get = {name.removeprefix("longstream_"): value for name, value in sums.items()}.get
    slots, reserved = get("kv_slots"), get("kv_bytes")
    return Measured(
        generated=get("generation_tokens_total"),
        drafts=get("spec_decode_drafts_total"),
        draft_tokens=get("spec_decode_draft_tokens_total"),
        accepted=get("spec_decode_accepted_tokens_total"),
        kv_bytes_per_stream=reserved / slots if reserved and slots else None,
        processed=(get("prompt_tokens_total") or 0.0) + (get("generation_tokens_total") or 0.0)
        if sums
        else None,
    )


class WorkerProcess:
    """A context manager around ``python -m pipelines.cli.main worker``. It dies with this process.

    In a process group of its own, so that Ctrl-C reaches the demo alone, which then stops the worker
    in order (SIGTERM, and SIGKILL after :data:`STOP_SECONDS`).
    """

    command, port_setting = "worker", "LONGSTREAM_HTTP_PORT"

    def __init__(self, environment: Mapping[str, str], http_port: int) -> None:
        self._environment = {**os.environ, **environment, self.port_setting: str(http_port)}
        self._url = f"http://127.0.0.1:{http_port}"
        self.log: deque[str] = deque(maxlen=400)
        self.lines = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "pipelines.cli.main", self.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._environment,
            process_group=0,
            preexec_fn=_die_with_parent,
        )
        self._reader = threading.Thread(target=self._read, daemon=True, name=f"{self.command}-log")
        self._reader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._reader.join(2.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.append(line.rstrip())
            self.lines += 1

    def check(self) -> None:
        """Raises ``DeviceError`` with the end of the log if the process has ended."""
        if (code := self._process.poll()) is not None:
            self._reader.join(2.0)
            tail = "\n".join(list(self.log)[-20:])
            raise DeviceError(f"the {self.command} ended with code {code}; its last lines:\n{tail}")

    def ready(self) -> bool:
        """True once the model is loaded and partitions are assigned."""
        status, _ = self._get("/ready")
        return status == 200

    def measure(self) -> Measured:
        """The current numbers; all None while the page does not answer."""
        status, body = self._get("/metrics")
        return parse_metrics(body) if status == 200 else Measured()

    def numbers(self) -> dict[str, float]:
        """All it measures, by metric and summed over labels; empty while it does not answer."""
        status, body = self._get("/metrics")
        return parse_page(body) if status == 200 else {}

    @property
    def pid(self) -> int:
        return self._process.pid

    def children(self) -> list[int]:
        """Process ids of what it started: its device process."""
        try:
            return [child.pid for child in psutil.Process(self.pid).children()]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        """CPU time it and its children have used so far."""
        total = 0.0
        for pid in (self.pid, *self.children()):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = psutil.Process(pid).cpu_times()
                total += times.user + times.system
        return total

    def _get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self._url + path, timeout=HTTP_SECONDS) as answer:  # noqa: S310  # nosec B310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""
        except (OSError, ValueError):
            return 0, ""


class PageProcess(WorkerProcess):
    """The same around the gateway, which serves the page."""

    command, port_setting = "gateway", "LONGSTREAM_GATEWAY_PORT"

    @property
    def address(self) -> str:
        return f"{self._url}/"


def settings_with(environment: Mapping[str, str]) -> Settings:
    """The settings a worker with this environment will read; wrong ones are refused here already."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        return load_settings()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _die_with_parent() -> None:
    """In the child: SIGTERM when the demo dies, also by SIGKILL (Linux only).

    Called in the child between fork and exec; the demo starts it from its main thread, because the
    kernel ties the signal to the thread that forked.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
