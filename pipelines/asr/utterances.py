"""Audio as segments: cut where the speaker pauses, with drafts while somebody speaks.

Audio is 16 kHz mono, float32 in [-1, 1]. What recognises words and what finds speech are given as
functions, so that this knows no model: :mod:`pipelines.asr.whisper` has both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from operators.events import Segment

RATE = 16_000
Audio = np.ndarray[Any, np.dtype[np.float32]]
Recognise = Callable[[Audio], str]
FindSpeech = Callable[[Audio], list[tuple[int, int]]]
"""Audio -> (begin, end) of each stretch of speech, in samples."""


class Pauses(NamedTuple):
    """Seconds: an utterance ends after ``silence`` without speech, at the latest after ``longest``;
    while it lasts there is a draft every ``draft``."""

    silence: float = 0.7
    longest: float = 15.0
    draft: float = 1.5


PAUSES = Pauses()


def utterances(
    blocks: Iterable[Audio],
    recognise: Recognise,
    find_speech: FindSpeech,
    stream_id: str,
    pauses: Pauses = PAUSES,
    language: str | None = None,
) -> Iterator[Segment]:
    """Segments as the audio comes: drafts of an utterance, then its final text under the same id.
    Silence gives none. Memory is bounded by ``longest`` and the size of a block."""
    held: Audio = np.zeros(0, np.float32)
    start = drafted = revision = 0

    def segment(until: int, final: bool) -> Segment:
        return Segment(
            stream_id=stream_id,
            segment_id=f"at-{start * 1000 // RATE}",
            text=recognise(held[:until]).strip(),
            revision=revision,
            is_final=final,
            end_of_turn=final,
            start_ms=start * 1000 // RATE,
            end_ms=(start + until) * 1000 // RATE,
            language=language,
        )

    for block in blocks:
        held = np.concatenate([held, block])
        speech = find_speech(held)
        if not speech:
            # Keep the last moment: a word may have begun in it.
            kept = min(len(held), int(pauses.silence * RATE))
            start, drafted = start + len(held) - kept, 0
            held = held[len(held) - kept :]
            continue
        end = speech[-1][1]
        ended = len(held) - end >= pauses.silence * RATE
        if ended or len(held) >= pauses.longest * RATE:
            until = end if ended else len(held)
            found = segment(until, True)
            if found.text:
                yield found
            start, held, drafted, revision = start + until, held[until:], 0, 0
        elif len(held) - drafted >= pauses.draft * RATE:
            drafted = len(held)
            found = segment(len(held), False)
            revision += 1
            if found.text:
                yield found
    if len(held) and find_speech(held):
        found = segment(len(held), True)
        if found.text:
            yield found
