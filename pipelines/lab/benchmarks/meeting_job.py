"""One job for all: streams of real meetings, each sentence translated, summaries on the way.

The job is written down independently of the engine: which transcript every stream has, and after
which token what is asked for with which instruction. A peer gets the window as text again for every
answer; how many tokens each answer has, the engine says (:meth:`Job.with_lengths`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from operators import languages
from operators.config import OperatorConfig
from operators.events import Segment, Speaker
from operators.model.tokenizer import Tokenizer
from operators.state import SessionState, WindowSegment
from operators.tasks.prompts import Prompts
from operators.tasks.summary import MAX_NOTES, SINCE_CHARS, SINCE_WORDS
from pipelines.dev.demo.plan import meeting_files
from pipelines.wire.codec import read_transcript

T = TypeVar("T")
SHORTEST_WORDS = 6
"""Shorter utterances ("Yeah.") are left out: their answers cost the engine next to nothing, and every
peer a whole window."""
LONGEST_TOKENS = 60
"""Longer ones are cut at sentences, as a recogniser would."""


@dataclass(frozen=True)
class Ask:
    """One answer: asked for after ``fork`` transcript tokens of its stream. ``alone``: it sees nothing
    but its instruction. ``output``: how many tokens the answer has, once known."""

    stream: int
    kind: str
    fork: int
    instruction: tuple[int, ...]
    output: int = 0
    alone: bool = False


@dataclass(frozen=True)
class Stream:
    """``transcript``: tokens, of which the first ``warm`` are in memory before time is taken."""

    stream_id: str
    transcript: tuple[int, ...]
    warm: int
    state: SessionState
    """What the engine needs to begin with the same warm window."""
    segments: tuple[Segment, ...]
    asks: tuple[Ask, ...]


@dataclass(frozen=True)
class Job:
    """``prefix``: the pinned tokens before every window of ``window`` transcript tokens."""

    window: int
    prefix: tuple[int, ...]
    streams: tuple[Stream, ...]

    @property
    def asks(self) -> list[Ask]:
        """All of them, in the order of a conversation that goes on in all streams at once."""
        return in_turn([stream.asks for stream in self.streams])

    def seen(self, ask: Ask) -> tuple[int, ...]:
        """The transcript tokens that ``ask`` sees."""
        if ask.alone:
            return ()
        start = max(0, ask.fork - self.window)
        return self.streams[ask.stream].transcript[start : ask.fork]

    def prompt(self, ask: Ask) -> list[int]:
        """All tokens a peer has to be given."""
        return [*self.before(ask), *ask.instruction]

    def before(self, ask: Ask) -> list[int]:
        """Those in front of the instruction."""
        return [] if ask.alone else [*self.prefix, *self.seen(ask)]

    def with_lengths(self, lengths: Sequence[Sequence[int]]) -> Job:
        """The job with the number of output tokens of every ask of every stream."""
        streams = []
        for stream, counts in zip(self.streams, lengths, strict=True):
            pairs = zip(stream.asks, counts, strict=True)
            asks = tuple(dataclasses.replace(ask, output=max(1, n)) for ask, n in pairs)
            streams.append(dataclasses.replace(stream, asks=asks))
        return dataclasses.replace(self, streams=tuple(streams))


def in_turn(rows: Iterable[Sequence[T]]) -> list[T]:
    """The first of every row, then the second of every row, and so on."""
    listed = list(rows)
    return [
        row[at] for at in range(max(map(len, listed), default=0)) for row in listed if at < len(row)
    ]


def make_job(tokenizer: Tokenizer, config: OperatorConfig, streams: int, updates: int) -> Job:
    """Streams with a full window that go on for ``updates`` rolling summaries each."""
    prompts = Prompts(tokenizer, config.prompts)
    made = [
        _Writer(tokenizer, config, prompts, number).stream(_speech(number), updates)
        for number in range(streams)
    ]
    return Job(config.window, tuple(prompts.prefix), tuple(made))


def _speech(number: int) -> list[Segment]:
    """A meeting from the package; later streams begin later in it, and go round at its end."""
    files = meeting_files()
    turn, at = divmod(number, len(files))
    segments = [s for s in read_transcript(files[at]) if len(s.text.split()) >= SHORTEST_WORDS]
    start = (turn * len(segments) * 2 // 7) % len(segments)
    return segments[start:] + segments[:start]


class _Writer:
    """Writes down one stream, by the rules the engine follows."""

    def __init__(
        self, tokenizer: Tokenizer, config: OperatorConfig, prompts: Prompts, number: int
    ) -> None:
        self._tokenizer, self._config, self._prompts = tokenizer, config, prompts
        self._number = number
        self._transcript: list[int] = []
        self._asks: list[Ask] = []
        self._warm: list[WindowSegment] = []
        self._fed: list[Segment] = []
        self._fork = 0
        self._since: str | None = None

    def stream(self, speech: Sequence[Segment], updates: int) -> Stream:
        pieces = (piece for segment in speech for piece in self._pieces(segment))
        full, left = False, updates
        for segment in pieces:
            line = _line(segment)
            tokens = self._tokenizer.encode(line)
            full = full or len(self._transcript) + len(tokens) > self._config.window
            if not full:
                self._hear(segment, line, tokens)
                continue
            self._transcript.extend(tokens)
            left -= self._say(segment)
            if not left:
                break
        warm = sum(info.tokens for info in self._warm)
        return Stream(
            self._name,
            tuple(self._transcript),
            warm,
            self._state(),
            tuple(self._fed),
            tuple(self._asks),
        )

    @property
    def _name(self) -> str:
        return f"stream-{self._number}"

    def _pieces(self, segment: Segment) -> list[Segment]:
        said = " ".join(segment.text.split())
        name = Speaker(name=segment.speaker.name) if segment.speaker is not None else None
        texts = languages.split(said, LONGEST_TOKENS, lambda t: len(self._tokenizer.encode(t)))
        return [Segment(stream_id=self._name, text=text, speaker=name) for text in texts]

    def _hear(self, segment: Segment, line: str, tokens: Sequence[int]) -> None:
        """Before the clock starts: into the window, nothing asked."""
        self._transcript.extend(tokens)
        self._fork = len(self._transcript)
        seq = len(self._warm)
        speaker = segment.speaker.name if segment.speaker is not None else None
        self._warm.append(
            WindowSegment(
                segment_id=f"w{seq}",
                seq=seq,
                text=line,
                tokens=len(tokens),
                offset=seq,
                speaker=speaker,
            )
        )

    def _say(self, segment: Segment) -> bool:
        """One segment of the job: its translations, and an update if one is due (returned)."""
        seq = len(self._warm) + len(self._fed)
        self._fed.append(
            Segment(
                stream_id=self._name,
                seq=seq,
                segment_id=f"s{seq}",
                text=segment.text,
                speaker=segment.speaker,
            )
        )
        if self._since is None:
            self._since = " ".join(segment.text.split()[:SINCE_WORDS])[:SINCE_CHARS]
        for tag in self._config.targets:
            fields = {"language": languages.name(tag), "text": segment.text, "hint": ""}
            self._ask(f"translation:{tag}", self._prompts.alone("translate", **fields), alone=True)
        if len(self._transcript) - self._fork < self._config.update_tokens:
            return False
        fields = {"ledger": "", "limit": str(MAX_NOTES), "since": self._since}
        self._ask("summary", self._prompts.render("summary", **fields))
        self._fork, self._since = len(self._transcript), None
        return True

    def _ask(self, kind: str, instruction: Sequence[int], *, alone: bool = False) -> None:
        fork = len(self._transcript)
        self._asks.append(Ask(self._number, kind, fork, tuple(instruction), alone=alone))

    def _state(self) -> SessionState:
        count = len(self._warm)
        return SessionState(
            stream_id=self._name,
            cursor=count - 1,
            next_seq=count,
            window=tuple(self._warm),
            covered_seq=count - 1,
            covered_segment_id=self._warm[-1].segment_id,
            tokens_total=sum(info.tokens for info in self._warm),
        )


def _line(segment: Segment) -> str:
    """The segment as it lies in the window."""
    name = segment.speaker.name if segment.speaker is not None else None
    return f"{name}: {segment.text}\n" if name else f"{segment.text}\n"
