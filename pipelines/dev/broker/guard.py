"""Run one server process that cannot outlive its owner, nor leave its folder behind.

    python -I -S guard.py FOLDER LOG COMMAND...

The owner holds the write end of this process's stdin. End of file there means that the owner closed
it or died, however it died, also by SIGKILL; then the server is killed and FOLDER is removed. The
line ``kill`` kills the server and keeps FOLDER, for a restart on the same data.

Why a pipe and not only ``prctl(PR_SET_PDEATHSIG)``: that signal is Linux only, fires when the
*thread* that forked ends, and could not remove the folder. Here it is used as well, on Linux, for
the one case that a pipe does not cover: the guard itself being killed. This process has one thread,
so the signal's rule about threads does no harm. On macOS that one case leaves the server running.

The server is killed rather than asked to stop: nothing of its folder is needed afterwards, and a
clean Kafka shutdown takes seconds. Standard library only, so that it starts in milliseconds.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.2


def die_with_guard() -> None:
    """In the child, before exec: ask the kernel for SIGKILL when the guard ends (Linux only)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def watch(server: "subprocess.Popen[bytes]") -> str:
    """Wait for what comes first: ``"gone"`` (server ended), ``"kill"`` or ``"eof"`` (on stdin)."""
    while server.poll() is None:
        readable, _, _ = select.select([0], [], [], POLL_SECONDS)
        if not readable:
            continue
        received = os.read(0, 64)
        if not received:
            return "eof"
        if received.startswith(b"kill"):
            return "kill"
    return "gone"


def main() -> int:
    """Start the server, report its process id on stdout, watch. Returns the exit status."""
    folder, log, *command = sys.argv[1:]
    with open(log, "ab") as output:
        server = subprocess.Popen(  # noqa: S603 - the command is our own
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_guard,
            start_new_session=True,
        )
    print(server.pid, flush=True)
    reason = watch(server)
    if server.poll() is None:
        server.kill()
    status = server.wait()
    if reason == "eof":
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if reason != "gone" else (status if status > 0 else 1)


if __name__ == "__main__":
    sys.exit(main())
