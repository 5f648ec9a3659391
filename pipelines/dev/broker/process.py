"""A broker that is a child process of ours, behind a guard (see guard.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from pipelines.dev.broker.base import Broker, BrokerError, listens

START_SECONDS = 90.0
LOG_TAIL_LINES = 25


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log file, for an error message; empty if there is no such file."""
    try:
        with log.open(errors="replace") as opened:
            return "".join(deque(opened, lines)).rstrip()
    except OSError:
        return ""


class ProcessBroker(Broker):
    """Runs ``command`` with everything it writes in ``folder``, which :meth:`close` removes.

    ``log`` is the server's output. :meth:`launch` returns when the port accepts connections.
    """

    def __init__(self, bootstrap: str, description: str, folder: Path, command: list[str]) -> None:
        super().__init__(bootstrap, description)
        self.folder = folder
        self.log = folder / "server.log"
        self.pid: int | None = None
        """Process id of the server itself (not of its guard) while it runs."""
        self._command = command
        self._guard: subprocess.Popen[bytes] | None = None

    def launch(self, timeout: float = START_SECONDS) -> None:
        """Start the server and wait until it listens; :class:`BrokerError` with its log if not."""
        self.begin()
        self.await_listening(timeout)

    def begin(self) -> None:
        """Start the server."""
        guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
        self._guard = subprocess.Popen(  # noqa: S603 - our own script and command
            [*guard, str(self.folder), str(self.log), *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C in a terminal is for the owner, who then closes us in order.
            start_new_session=True,
        )
        assert self._guard.stdout is not None
        self.pid = int(self._guard.stdout.readline() or 0) or None

    def await_listening(self, timeout: float = START_SECONDS) -> None:
        """Wait until the begun server listens; :class:`BrokerError` with its log if it does not."""
        assert self._guard is not None
        deadline = time.monotonic() + timeout
        while not listens(self.bootstrap):
            if self._guard.poll() is not None:
                raise BrokerError(self._failure("ended while starting"))
            if time.monotonic() > deadline:
                raise BrokerError(self._failure(f"did not listen within {timeout:.0f} s"))
            time.sleep(0.05)

    def _failure(self, what: str) -> str:
        return f"{self.description} {what}; the end of its log:\n{log_tail(self.log)}"

    def close(self) -> None:
        self._end_guard(b"")
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        if self._guard is None:
            raise BrokerError(f"{self.description} is not running")
        self._end_guard(b"kill\n")

    def restart(self) -> None:
        if self._guard is not None:
            raise BrokerError(f"{self.description} is still running; kill() it first")
        if not self.folder.exists():
            raise BrokerError(f"{self.description} is closed and its data removed")
        self.launch()

    def _end_guard(self, word: bytes) -> None:
        """Say ``word`` to the guard, then close its stdin, and wait until the server is gone."""
        guard, self._guard, self.pid = self._guard, None, None
        if guard is None:
            return
        assert guard.stdin is not None
        assert guard.stdout is not None
        try:
            if word:
                os.write(guard.stdin.fileno(), word)
                guard.wait(timeout=30)
            guard.stdin.close()
        except BrokenPipeError:
            pass  # The server, and with it the guard, ended before.
        guard.wait(timeout=30)
        guard.stdout.close()
