"""Segments of a stream that were taken lately, by the ids their producer gave them.

A record with a known id is a repeat, a correction, or new speech: a recogniser that reconnects counts
its segments from the beginning again. Which of them it is follows from the revision, the times and the
words, in that order (:func:`relation`). New speech is taken under a name of its own, ``id@2``, so that
no two segments of a stream share a name in evidence, units of translation or state.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from msgspec.structs import replace

from operators.events import Segment
from operators.state import WindowSegment
from operators.tasks import corrections
from operators.text import content

RECENT_IDS = 1024
"""Segment ids of a stream that are known as already taken."""
SAME_TIME_MS, OTHER_TIME_MS = 2_000, 60_000
"""Starts closer than the first are of one segment, starts further apart than the second are of two."""
UNRELATED = 0.2
"""Share of the smaller text's words in the other below which the texts are two segments'."""
DRAFT_WORDS = 3
"""A draft of fewer words does not tell whether it is new speech."""
SKETCH_WORDS, WORD_BYTES = 32, 4
_USED_AGAIN = re.compile(r"(.+)@(\d{1,9})", re.DOTALL)

Relation = Literal["repeat", "correction", "new"]


class Known(NamedTuple):
    """A segment that was taken. Fields are None where they are not known any more."""

    segment_id: str
    """As the producer gave it."""
    name: str
    """Under which the stream knows it: its id, or ``id@n`` for the n-th use of the id."""
    revision: int = 0
    digest: bytes | None = None
    """Of its text."""
    sketch: bytes | None = None
    """Hashes of up to SKETCH_WORDS of its words."""
    start_ms: int | None = None


class KnownSegments:
    """Bounded: the RECENT_IDS newest."""

    def __init__(self) -> None:
        self._by_id: dict[str, Known] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, segment_id: str) -> bool:
        return segment_id in self._by_id

    def get(self, segment_id: str) -> Known | None:
        return self._by_id.get(segment_id) if segment_id else None

    def records(self) -> list[Known]:
        """All of them, oldest first."""
        return list(self._by_id.values())

    def remember(self, known: Known) -> None:
        """Note a segment as taken."""
        self._by_id[known.segment_id] = known
        while len(self._by_id) > RECENT_IDS:
            del self._by_id[next(iter(self._by_id))]

    def take(self, segment_id: str, segment: Segment) -> None:
        """Note a segment under the name it has; ``segment_id``: as the producer gave it."""
        if segment_id:
            name, text = segment.segment_id, segment.text
            told = digest(text), sketch(text)
            self.remember(Known(segment_id, name, segment.revision, *told, segment.start_ms))

    def remember_name(self, known: Known) -> None:
        """Note a segment of which only the name is known: ``id@n`` may be the n-th use of an id."""
        self.remember(known)
        if used_again := _USED_AGAIN.fullmatch(known.name):
            before = self.get(used_again[1])
            if before is None or _uses(before.name) < _uses(known.name):
                self.remember(known._replace(segment_id=used_again[1]))

    def restore(self, infos: Iterable[WindowSegment], said: Callable[[WindowSegment], str]) -> None:
        """Note the segments of a window that is restored from its text; ``said`` is that without the
        speaker's name."""
        parts: dict[str, list[WindowSegment]] = {}
        for info in infos:
            parts.setdefault(info.segment_id, []).append(info)
        for name, of_one in parts.items():
            text = of_one[0].correction or " ".join(map(said, of_one))
            whole = len(of_one) == 1 and len(of_one[0].correction or "") < corrections.CHARS
            told = digest(text) if whole else None
            first = of_one[0]
            self.remember_name(
                Known(name, name, first.revision, told, sketch(text), first.start_ms)
            )

    def named(self, segment: Segment) -> tuple[Segment, Relation]:
        """The segment under the name the stream knows it by, and what it is to what is known. Changes
        nothing."""
        known = self.get(segment.segment_id)
        if known is None:
            return segment, "new"
        found = relation(segment, known)
        name = known.name
        if found == "new":
            name = f"{segment.segment_id}@{_uses(known.name) + 1}"
        return (segment if name == segment.segment_id else replace(segment, segment_id=name)), found


def relation(segment: Segment, known: Known) -> Relation:
    """What a segment with a known id is.

    A higher revision is a correction. Else two starts minutes apart are two segments, and starts that
    agree are one; without times, words that are nearly all others are new speech, unless the revision
    says that it is an older one. What is then left is
    a repeat if its revision is older or its text the same, else a correction.
    """
    spoken = segment.type == "segment" and bool(segment.text.strip())
    if spoken and segment.revision <= known.revision and _is_other_speech(segment, known):
        return "new"
    if segment.revision != known.revision:
        return "correction" if segment.revision > known.revision else "repeat"
    same = known.digest is None or known.digest == digest(segment.text)
    return "repeat" if same else "correction"


def _is_other_speech(segment: Segment, known: Known) -> bool:
    apart = _apart(segment, known)
    if apart is not None and (apart <= SAME_TIME_MS or apart > OTHER_TIME_MS):
        return apart > OTHER_TIME_MS
    if 0 < segment.revision < known.revision:
        return False  # its producer counts revisions: this is an older one that comes late
    if not segment.is_final and len(_hashes(segment.text)) < DRAFT_WORDS:
        return False
    return known.sketch is not None and likeness(known.sketch, segment.text) < UNRELATED


def _apart(segment: Segment, known: Known) -> int | None:
    if segment.start_ms is None or known.start_ms is None:
        return None
    return abs(segment.start_ms - known.start_ms)


def digest(text: str) -> bytes:
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest()


def sketch(text: str) -> bytes:
    """Hashes of the text's words, the smallest SKETCH_WORDS of them."""
    return b"".join(sorted(_hashes(text))[:SKETCH_WORDS])


def likeness(known: bytes, text: str) -> float:
    """Share of the smaller text's words that the other has, 0 to 1; 1 where either has none."""
    kept = {known[at : at + WORD_BYTES] for at in range(0, len(known), WORD_BYTES)}
    words = _hashes(text)
    if not kept or not words:
        return 1.0
    return len(kept & words) / min(len(kept), len(words))


def _hashes(text: str) -> set[bytes]:
    return {zlib.crc32(word.encode()).to_bytes(WORD_BYTES) for word in content(text)}


def _uses(name: str) -> int:
    used_again = _USED_AGAIN.fullmatch(name)
    return int(used_again[2]) if used_again else 1
