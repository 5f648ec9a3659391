"""The public names, the examples, and the wheel that brings them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

import longstream
from operators.events import Event, ResultEvent, Segment
from operators.model.rows import is_compiled
from operators.stream_operator import StreamOperator
from operators.tasks.base import Task
from tests.engine import toy_decoder
from tests.operators.test_stream_operator import CONFIG, drain, speech

ROOT = Path(__file__).parents[1]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_there_and_documented() -> None:
    documented = re.findall(r"^- `(\w+)`", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(longstream.__all__)
    for name in longstream.__all__:
        assert getattr(longstream, name) is not None


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, longstream; print('torch' in sys.modules, longstream.__version__)"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split()[0] == "False"


def test_a_task_of_the_users_own_runs_beside_the_built_in_ones() -> None:
    task: Task = example("custom_task").Keywords(every=40)

    def told(*tasks: Task) -> list[Event]:
        operator = StreamOperator(toy_decoder(), CONFIG, tasks=tasks)
        operator.open("a")
        for at, segment in enumerate(speech("a", 12)):
            operator.feed(segment, at)
        return [event for emission in drain(operator) for event in emission.events]

    events = told(task)
    mine = [event for event in events if isinstance(event, ResultEvent)]
    assert [event.revision for event in mine] == list(range(1, len(mine) + 1))
    assert len(mine) > 2
    assert {event.task for event in mine} == {"keywords"}
    assert all(event.event_id and event.usage.output_tokens for event in mine)
    # It takes nothing from the others: their texts are what they are without it.
    others = {(type(e), e.revision, getattr(e, "text", "")) for e in events if e not in mine}
    assert others == {(type(e), e.revision, getattr(e, "text", "")) for e in told()}


def test_the_wheel_alone_is_enough(tmp_path: Path) -> None:
    """Built, unpacked beside the dependencies only, and imported from elsewhere."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = wheels.glob("longstream-*.whl")
    install = ["install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    code = (
        f"import sys; sys.path[:0] = [{str(target)!r}, {sysconfig.get_path('purelib')!r}]\n"
        "from longstream import load_operator, StreamOperator, Segment\n"
        "import operators, pipelines.wire.codec, pipelines.dev.demo.plan as plan\n"
        f"assert operators.__file__.startswith({str(target)!r}), operators.__file__\n"
        "from operators.tasks.prompts import NAMES, packaged\n"
        "assert packaged().keys() >= {*NAMES, 'judge.de'}\n"
        "assert len(plan.meeting_files()) >= 3\n"
        "from operators.model.rows import is_compiled\n"
        f"assert is_compiled() == {is_compiled()}  # as here, by the same compiler\n"
        "assert len(plan.passage_files()) >= 3\n"
        "from pipelines.dev.broker.jvm import KAFKA_FOLDER\n"
        "assert (KAFKA_FOLDER / 'pom.xml').is_file()  # for longstream kafka\n"
        "print(Segment(stream_id='a', text='hello').text)"
    )
    run = [sys.executable, "-I", "-S", "-c", code]
    ran = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "hello", ran.stderr


@pytest.mark.slow
@pytest.mark.model
def test_the_package_built_from_the_sdist_runs_the_sample(tmp_path: Path) -> None:
    """An sdist, the wheel made of it, an environment with the dependencies only, and the command."""
    build = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "-o",
        str(tmp_path / "dist"),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("longstream-*.whl")
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    target = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    install = ["install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "-q", *install], check=True, capture_output=True)
    (target / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    sample = tmp_path / "standup.txt"
    sample.write_text((ROOT / "examples" / "standup.txt").read_text("utf-8"), "utf-8")
    run = ["-m", "longstream", "run", str(sample), "--model", "smollm2-135m"]
    ran = subprocess.run(
        [str(home / "bin" / "python"), *run],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    last = json.loads(ran.stdout.splitlines()[-1])
    assert (last["stream_id"], last["status"]) == ("standup", "final")


def test_segment_is_the_struct_that_streams_take() -> None:
    assert longstream.Segment is Segment
