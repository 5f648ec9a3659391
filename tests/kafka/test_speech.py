"""Speech, made by flite, through the recogniser, Kafka and a model to minutes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest

from pipelines.models import store as model_store
from tests.kafka_settings import environment_of
from tests.worker_process import Records, wait_until, workers

ROOT = Path(__file__).parents[2]
SAID = (
    "Good morning.",
    "The release moves to Friday.",
    "Robert will call the customers on Monday.",
    "We decided to buy the blue printer.",
    "Who pays for the printer?",
    "Helen sends the budget tomorrow.",
)
PAUSE_SECONDS = 1.2
MODEL = "qwen2.5-coder-1.5b"
"""The small test model writes no minutes that pass the checks."""
WORDS = ("release", "friday", "robert", "customers", "printer", "budget")


def speak(path: Path) -> None:
    """The sentences with pauses between. Without them the smallest recogniser writes one sentence."""
    with wave.open(str(path), "wb") as whole:
        for number, sentence in enumerate(SAID):
            one = path.with_name(f"{number}.wav")
            subprocess.run(["flite", "-voice", "slt", "-t", sentence, "-o", str(one)], check=True)
            with wave.open(str(one), "rb") as part:
                if not number:
                    whole.setparams(part.getparams())
                whole.writeframes(part.readframes(part.getnframes()))
                silent = int(PAUSE_SECONDS * part.getframerate()) * part.getsampwidth()
                whole.writeframes(bytes(silent))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("flite"), reason="flite makes the speech; it is not here")
def test_what_was_spoken_is_in_the_minutes(topics: Any, tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper")
    if model_store.cached(MODEL) is None:
        pytest.skip(f"{MODEL} is not here: longstream model pull {MODEL}")
    topics.create(1)
    speech = tmp_path / "talk.wav"
    speak(speech)
    program = f"{sys.executable} -m pipelines.cli.main"
    with (
        workers(topics, tmp_path, model=MODEL, test_operator="") as start,
        Records(topics.bootstrap, topics.summaries, partitions=1) as seen,
        Records(topics.bootstrap, topics.segments, partitions=1) as said,
    ):
        start("w1")
        command = f"{program} listen {speech} | {program} replay - --stream talk --speed max"
        subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=ROOT,
            env=environment_of(topics),
            check=True,
            timeout=300,
        )
        wait_until(lambda: any(e.status == "final" for e in seen.summaries("talk")), 600)
        final = seen.summaries("talk")[-1]
        segments = [json.loads(record.value) for record in said.records[topics.segments]]
    heard = " ".join(s["text"] for s in segments if s.get("is_final") and s.get("text")).lower()
    assert [word for word in WORDS if word not in heard] == [], heard
    minutes = " ".join(item.text for item in final.items).lower()
    missing = [word for word in WORDS if word not in minutes]
    assert len(missing) <= 2, (missing, minutes)  # a small model leaves something out
    assert {"robert", "helen"} & set(minutes.replace(".", " ").split())
    spoken = {s["segment_id"] for s in segments if s.get("segment_id")}
    assert final.items
    assert all({e.segment_id for e in item.evidence} <= spoken for item in final.items)
    print(heard, *final.items, sep="\n")
