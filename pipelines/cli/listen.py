"""``longstream listen``: speech to segments, as JSON lines for ``run`` and ``replay``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.output import JsonAnyway, complaints
from pipelines.config.load import load_settings
from pipelines.wire.codec import encode_segment


def listen(
    file: Annotated[str, typer.Argument(help="WAV, 16 kHz, 16 bits; - is stdin, as it comes.")],
    recogniser: Annotated[
        str,
        typer.Option(
            help="tiny.en (75 MB), base (150 MB, many languages), or a CTranslate2 Whisper's folder."
        ),
    ] = "tiny.en",
    stream: Annotated[str | None, typer.Option(help="Stream id; default: the file's name.")] = None,
    language: Annotated[
        str, typer.Option(help="Language spoken; auto: the recogniser says (not tiny.en).")
    ] = "en",
    finals: Annotated[bool, typer.Option("--finals", help="Leave drafts out.")] = False,
    as_json: JsonAnyway = False,
) -> None:
    """Recognise speech with faster-whisper (extra asr): a JSON line per draft and per utterance.

    Into the operator: `longstream listen talk.wav | longstream run -`.
    Into Kafka: `longstream listen - | longstream replay - --no-end`.
    """
    with complaints("listen"):
        from pipelines.asr.utterances import utterances
        from pipelines.asr.whisper import blocks_of, load, weights

        settings = load_settings()
        folder = weights(recogniser, settings.cache)
        spoken = None if language == "auto" else language
        recognise, find_speech = load(folder, settings.threads, spoken)
        name = stream or ("stdin" if file == "-" else Path(file).stem)
        with sys.stdin.buffer if file == "-" else Path(file).open("rb") as source:
            for segment in utterances(
                blocks_of(source), recognise, find_speech, name, language=spoken
            ):
                if segment.is_final or not finals:
                    sys.stdout.write(encode_segment(segment).decode() + "\n")
                    sys.stdout.flush()
