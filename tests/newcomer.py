"""Runs the quick start and the README as a stranger would: a clone, an empty environment, every command
as printed.

    python tests/newcomer.py [--python VENV_PYTHON] [--cache FOLDER] [--sections "A file,With Kafka"]

It knows docs/quickstart.md and README.md and nothing else. ``--python``: an environment that has
longstream already, in place of a new one (what ``make`` would install is left out); ``--cache``: models
that are here already. Without Docker or Java what needs a broker is left out, and that is said. The demo
then runs on its embedded broker, and has to say what that one does not promise. The small model
stands in place of the default one. ``make test`` is left out: it takes long, and is run by itself.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = (Path("docs") / "quickstart.md", Path("README.md"))
INSTALL, KAFKA = "Quick start", "With Kafka"
DEFAULT, SMALL = "qwen2.5-coder-1.5b", "smollm2-135m"
NO_PROMISE = "nothing is guaranteed here"
READY = {"longstream kafka": "in another terminal", "longstream worker": "serving"}
"""Commands that go on until they are stopped, and what they say when they are ready."""
READY_SECONDS = 300.0
COMMAND_SECONDS = 1800.0


class Step(NamedTuple):
    section: str
    command: str


def steps(page: str) -> Iterator[Step]:
    """The commands of the page's shell blocks and its programs, in order, each under its heading."""
    section, inside, program = "", "", ""
    for line in page.splitlines():
        if line.startswith("```"):
            if inside == "```python":
                yield Step(section, f"python - <<'END'\n{program}END")
            inside, program = ("" if inside else line), ""
        elif not inside and (heading := re.match(r"#+ (.*)", line)):
            section = heading[1]
        elif inside == "```python":
            program += line.replace(DEFAULT, SMALL) + "\n"
        elif inside == "```sh" and (command := re.split(r" {2,}#", line)[0].strip()):
            yield Step(section, command)


class Terminal:
    """Runs commands in the clone, with nothing of this shell's environment but the path."""

    def __init__(self, clone: Path, home: Path, python: str | None, cache: str | None) -> None:
        kept = ("LANG", "SSL_CERT_FILE", "PIP_CERT", "PIP_INDEX_URL", "PIP_FIND_LINKS", "JAVA_HOME")
        self._env = {name: os.environ[name] for name in kept if name in os.environ}
        first = f"{Path(python).absolute().parent}:" if python else f"{clone}/.venv/bin:"
        self._env |= {"PATH": first + os.environ["PATH"], "HOME": str(home)}
        self._env |= {"LONGSTREAM_MODEL": SMALL, "MODEL": SMALL}
        if cache:
            self._env["LONGSTREAM_CACHE"] = cache
        if python:
            self._env["PYTHONPATH"] = str(clone)  # its longstream may be another checkout's
        self._clone, self._running = clone, list[tuple[subprocess.Popen[bytes], Path]]()

    def run(self, command: str) -> str:
        """What it said. Raises RuntimeError with that, if it fails or does not get ready."""
        for start, ready in READY.items():
            if command.startswith(start):
                self._start(command, ready)
                return ""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self._clone,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}\n{done.stdout}{done.stderr}"[-4000:])
        return done.stdout + done.stderr

    def _start(self, command: str, ready: str) -> None:
        log = self._clone / f"terminal-{len(self._running)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self._clone,
                env=self._env,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._running.append((process, log))
        deadline = time.monotonic() + READY_SECONDS
        while ready not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"never said {ready!r}\n{log.read_text(errors='replace')[-4000:]}"
                )
            time.sleep(0.5)

    def close(self) -> None:
        for process, _ in reversed(self._running):
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def has_broker() -> bool:
    """Whether a real Kafka can be started: Java and Maven, or a Docker that answers."""
    if shutil.which("java") and shutil.which("mvn"):
        return True
    docker = shutil.which("docker")
    return bool(docker) and subprocess.run([docker, "info"], capture_output=True).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python")
    parser.add_argument("--cache")
    parser.add_argument("--sections", help="Only these, with commas between.")
    options = parser.parse_args()
    wanted = options.sections.split(",") if options.sections else None
    broker = has_broker() and (wanted is None or KAFKA in wanted)
    with tempfile.TemporaryDirectory(prefix="newcomer-") as folder:
        clone, home = Path(folder) / "longstream", Path(folder) / "home"
        home.mkdir()
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        terminal = Terminal(clone, home, options.python, options.cache)
        try:
            pages = [(clone / page).read_text("utf-8") for page in PAGES]
            for step in (step for page in pages for step in steps(page)):
                if (wanted and step.section not in wanted) or (
                    options.python and step.section == INSTALL
                ):
                    continue
                needs_broker = step.section == KAFKA or "longstream worker" in step.command
                if (
                    (needs_broker and not broker)
                    or step.command == "make test"
                    or (options.python and step.command.startswith("make"))
                ):
                    print(f"left out    {step.command}", flush=True)
                    continue
                started = time.monotonic()
                said = terminal.run(step.command)
                first = step.command.splitlines()[0]
                print(f"{time.monotonic() - started:6.0f} s ok  {first}", flush=True)
                if step.command == "make demo" and not has_broker() and NO_PROMISE not in said:
                    raise RuntimeError("the demo does not say what its broker does not promise")
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"FAILED      {step.command}\n{error}", file=sys.stderr)
            return 1
        finally:
            terminal.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
