"""Who translates: the product, and other ways of using the same model.

Every side gives one output per sentence of a corpus, in order. The product's has times besides.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from operators.commit import policy
from operators.errors import ConfigError
from operators.events import Segment, TranslationEvent
from operators.state import Failure
from operators.stream import Stream
from operators.stream_operator import StreamOperator
from pipelines.lab.eval.backends import Backend
from pipelines.lab.eval.engine import Engine, Spent
from pipelines.lab.eval.latency import Timed
from pipelines.lab.eval.parallel import Corpus, Sentence

FINALS, RETRANSLATION = "finals", "retranslation"
WINDOW = 4096
"""Tokens of a stream until its minutes are written, unless set: only translations are looked at here."""
TOKENS_PER_SOURCE_TOKEN, TOKENS_AT_LEAST = 3, 48
GROUP = 50
"""Prompts of a plain side that a backend gets together."""
PLAIN = "Translate into {language}: {text}"
IN_CONTEXT = "{document}\n\nTranslate this sentence of the text above into {language}: {text}"


@dataclass
class Shown:
    """What was seen of one sentence's translation over time."""

    versions: list[str] = field(default_factory=list)
    committed: list[str] = field(default_factory=list)
    words: list[Timed] = field(default_factory=list)
    """Committed words with the times at which they were first there."""


@dataclass
class Translated:
    outputs: list[str] = field(default_factory=list)
    prefilled: int = 0
    generated: int = 0
    seconds: float = 0.0
    shown: list[Shown] = field(default_factory=list)
    """Of the product only."""
    degraded: list[str] = field(default_factory=list)
    aware: bool = True
    """Whether the times of words include what the machine took."""

    def add(self, more: Translated) -> None:
        """Take over what the same side made of the next sentences."""
        self.outputs += more.outputs
        self.prefilled += more.prefilled
        self.generated += more.generated
        self.seconds += more.seconds
        self.shown += more.shown
        self.degraded += more.degraded
        self.aware = self.aware and more.aware


Say = Callable[[str], None]


def policy_settings(name: str) -> dict[str, Any]:
    """The operator's settings for a policy by its name. Raises ConfigError for one it has not."""
    if name == RETRANSLATION:
        return {"translate_partials": True}
    return {"translate_partials": policy(name).commits, "translation_policy": name}


# --- the product ---------------------------------------------------------------------------------


def _translating(
    engine: Engine, corpus: Corpus, **settings: Any
) -> AbstractContextManager[tuple[StreamOperator, Spent]]:
    """An operator that does nothing else as long as a document fits its window."""
    window = engine.settings.get("window", WINDOW)
    sizes = {"window": window, "update_tokens": engine.settings.get("update_tokens", window)}
    return engine.operator(targets=(corpus.languages[1],), **sizes, **settings)


def ours(engine: Engine, corpus: Corpus, name: str, every_ms: int, say: Say) -> Translated:
    """Every document is a stream; its sentences are segments, each heard in full, or, where the
    policy translates partials, in growing partials ``every_ms`` of simulated speech apart.

    The clock is simulated: a translation comes when its input was there (unaware), and when the
    machine, which does one thing after the other, was done with it (aware)."""
    settings = policy_settings(name)
    made = Translated()
    with _translating(engine, corpus, **settings) as (operator, spent):
        for number, document in enumerate(corpus.documents()):
            stream = operator.open(f"document-{number}")
            free_at = 0.0
            for sentence in document:
                say(f"ours ({name}) {corpus.pair}: {len(made.outputs)}")
                partials = every_ms if settings["translate_partials"] else 0
                shown, free_at = _hear(stream, sentence, corpus, partials, free_at, made)
                made.shown.append(shown)
                made.outputs.append(shown.committed[-1] if shown.committed else "")
            operator.drop(stream.id)
    made.prefilled, made.generated = spent.prefilled, spent.generated
    return made


def many(
    engine: Engine,
    corpus: Corpus,
    name: str,
    every_ms: int,
    at_once: int,
    say: Say,
    *,
    alone: bool = False,
) -> Translated:
    """:func:`ours` with ``at_once`` documents beside each other: the same texts in less time. Its
    simulated clock knows when text was heard, and not what the machine took. ``alone``: every sentence
    is a document."""
    made = Translated()
    documents = corpus.documents()
    if alone:
        documents = [[sentence] for document in documents for sentence in document]
    policy_set = policy_settings(name)
    partials = every_ms if policy_set["translate_partials"] else 0
    settings = {**policy_set, "slots": at_once, "branches": at_once}
    with _translating(engine, corpus, **settings) as (operator, spent):
        began = time.perf_counter()
        step = 4 * at_once if alone else at_once
        for first in range(0, len(documents), step):
            group = documents[first : first + step]
            say(f"{'without context' if alone else f'ours ({name})'} {corpus.pair}: {first}")
            streams = [
                _Listening(operator.open(f"document-{first + n}"), document, corpus, partials)
                for n, document in enumerate(group)
            ]
            while any(stream.left for stream in streams):
                for stream in streams:
                    stream.hear(1 if partials else len(stream.left))
                for stream in streams:
                    stream.collect(made)
            for stream in streams:
                made.shown += stream.shown
                operator.drop(stream.stream.id)
        made.seconds = time.perf_counter() - began
    made.outputs = [seen.committed[-1] if seen.committed else "" for seen in made.shown]
    made.prefilled, made.generated = spent.prefilled, spent.generated
    made.aware = False
    return made


class _Listening:
    """A stream that hears one document. ``left``: the segments that are still to come."""

    def __init__(
        self, stream: Stream, document: Sequence[Sentence], corpus: Corpus, every_ms: int
    ) -> None:
        self.stream = stream
        self.shown = [Shown() for _ in document]
        self.left = deque(
            Segment(
                stream_id=stream.id,
                segment_id=str(at),
                revision=revision,
                text=text,
                is_final=final,
                language=corpus.languages[0],
                start_ms=sentence.start_ms,
                end_ms=round(heard_at),
            )
            for at, sentence in enumerate(document)
            for revision, (text, heard_at, final) in enumerate(heard(sentence, every_ms))
        )
        self._heard_at: dict[str, float] = {}

    def hear(self, count: int) -> None:
        """The next segments, if there are so many."""
        for _ in range(min(count, len(self.left))):
            segment = self.left.popleft()
            self._heard_at[segment.segment_id] = float(segment.end_ms or 0)
            self.stream.feed_segment(segment)

    def collect(self, made: Translated) -> None:
        """Note what has become of all that was heard."""
        for event in self.stream.results():
            if isinstance(event, Failure):
                made.degraded.append(f"failed: {event.reason}")
            elif isinstance(event, TranslationEvent):
                made.degraded += event.degraded
                at = self._heard_at[event.unit_id]
                _note(self.shown[int(event.unit_id)], event, at, at)


def _hear(
    stream: Stream,
    sentence: Sentence,
    corpus: Corpus,
    every_ms: int,
    free_at: float,
    made: Translated,
) -> tuple[Shown, float]:
    shown = Shown()
    unit = f"{sentence.doc}-{sentence.number}"
    for revision, (text, at, final) in enumerate(heard(sentence, every_ms)):
        stream.feed_segment(
            Segment(
                stream_id=stream.id,
                segment_id=unit,
                revision=revision,
                text=text,
                is_final=final,
                language=corpus.languages[0],
                start_ms=sentence.start_ms,
                end_ms=round(at),
            )
        )
        began = time.perf_counter()
        events: list[tuple[TranslationEvent, float]] = []
        for event in stream.results():
            if isinstance(event, Failure):
                made.degraded.append(f"failed: {event.reason}")
            elif isinstance(event, TranslationEvent) and event.unit_id == unit:
                events.append((event, time.perf_counter() - began))
        took = time.perf_counter() - began
        made.seconds += took
        starts = max(free_at, at)
        for event, after in events:
            made.degraded += event.degraded
            _note(shown, event, at, starts + 1000 * after)
        free_at = starts + 1000 * took
    return shown, free_at


def heard(sentence: Sentence, every_ms: int) -> list[tuple[str, float, bool]]:
    """(text, when it was heard, whether it is final): words come evenly over the sentence's time."""
    spoken = sentence.source.split()
    span = sentence.end_ms - sentence.start_ms
    steps: list[tuple[str, float, bool]] = []
    if every_ms:
        for at in range(every_ms, span, every_ms):
            said = " ".join(spoken[: len(spoken) * at // span])
            if said and said != sentence.source and (not steps or said != steps[-1][0]):
                steps.append((said, float(sentence.start_ms + at), False))
    return [*steps, (sentence.source, float(sentence.end_ms), True)]


def _note(shown: Shown, event: TranslationEvent, at: float, done: float) -> None:
    shown.versions.append(f"{event.committed}{event.tail}")
    if event.committed or event.is_final:
        shown.committed.append(event.committed)
    words = event.committed.split()
    kept = min(len(words), len(shown.words))
    shown.words = [Timed(w, t.unaware, t.aware) for w, t in zip(words, shown.words, strict=False)]
    shown.words += [Timed(word, at, done) for word in words[kept:]]


def without_context(engine: Engine, corpus: Corpus, say: Say) -> Translated:
    """The product's own prompt, each sentence on a stream of its own."""
    made = Translated()
    with _translating(engine, corpus) as (operator, spent):
        for sentence in corpus.sentences:
            say(f"without context {corpus.pair}: {len(made.outputs)}")
            stream = operator.open("sentence")
            shown, _ = _hear(stream, sentence, corpus, 0, 0.0, made)
            made.outputs.append(shown.committed[-1] if shown.committed else "")
            operator.drop(stream.id)
    made.prefilled, made.generated = spent.prefilled, spent.generated
    return made


# --- the same model, asked plainly -----------------------------------------------------------------


def plain(backend: Backend, engine: Engine, corpus: Corpus, say: Say) -> Translated:
    """One sentence per prompt, nothing else said."""
    prompts = [
        PLAIN.format(language=_named(corpus), text=sentence.source) for sentence in corpus.sentences
    ]
    asked = list(zip(corpus.sentences, prompts, strict=True))
    groups = [asked[at : at + GROUP] for at in range(0, len(asked), GROUP)]
    return _asked(backend, engine, groups, say, f"plain {corpus.pair}")


def offline(backend: Backend, engine: Engine, corpus: Corpus, say: Say) -> Translated:
    """Each sentence with its whole document, also what comes after it, in the prompt."""
    groups = []
    for document in corpus.documents():
        text = " ".join(sentence.source for sentence in document)
        groups.append(
            [
                (s, IN_CONTEXT.format(document=text, language=_named(corpus), text=s.source))
                for s in document
            ]
        )
    return _asked(backend, engine, groups, say, f"offline {corpus.pair}")


def _asked(
    backend: Backend,
    engine: Engine,
    groups: Sequence[Sequence[tuple[Sentence, str]]],
    say: Say,
    what: str,
) -> Translated:
    """``groups``: sentences with their prompts, those of a group beside each other."""
    made = Translated()
    for group in groups:
        say(f"{what} ({backend.name}): {len(made.outputs)}")
        asked = []
        for sentence, prompt in group:
            tokens = len(engine.model.tokenizer.encode(sentence.source))
            asked.append((prompt, TOKENS_PER_SOURCE_TOKEN * tokens + TOKENS_AT_LEAST))
        began = time.perf_counter()
        for reply in backend.replies(asked):
            made.outputs.append(reply.text)
            made.prefilled += reply.prefilled
            made.generated += reply.generated
        made.seconds += time.perf_counter() - began
    return made


def _named(corpus: Corpus) -> str:
    """The target language's name in English, as CLDR has it."""
    from babel import Locale, UnknownLocaleError

    code = corpus.languages[1]
    try:
        return str(Locale.parse(code, sep="-").get_display_name("en"))
    except (UnknownLocaleError, ValueError):
        raise ConfigError(f"no English name is known for the language {code!r}") from None
