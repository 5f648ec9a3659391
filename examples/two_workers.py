"""Two workers share the streams; one is killed, the other goes on. Needs `longstream kafka` and topics.

python examples/two_workers.py --model smollm2-135m
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

TALK = Path(__file__).parent / "standup.txt"
LONGSTREAM = (sys.executable, "-m", "longstream")
STREAMS = ("monday", "tuesday", "wednesday")


def longstream(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*LONGSTREAM, *words])


def worker(number: int, model: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"LONGSTREAM_WORKER": f"worker-{number}"}
    command = [*LONGSTREAM, "worker", "--model", model, "--http-port", "0"]
    return subprocess.Popen(command, env=environment)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args(arguments)
    workers = [worker(number, options.model) for number in (1, 2)]
    try:
        for stream in STREAMS:
            longstream("replay", str(TALK), "--stream", stream).wait()
        workers[0].kill()  # as a machine that is switched off
        print("worker-1 is gone; its partitions move to worker-2", flush=True)
        # Returns when each stream has its closing notes, whoever wrote them.
        return longstream("watch", *STREAMS, "--from-beginning", "--until-end", "--plain").wait()
    finally:
        for each in workers:
            each.terminate()
            each.wait(timeout=60)


if __name__ == "__main__":
    raise SystemExit(main())
