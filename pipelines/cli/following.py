"""What a person sees of a stream: tail of the transcript, ledger, translations.

The state kept per stream is bounded, so a follower may run for ever. Idempotence as the contract
asks of every consumer: the highest ``(epoch, revision)`` wins, a seen ``event_id`` is dropped.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from operators.events import AnswerEvent, AnyEvent, Segment, SummaryEvent, TranslationEvent

TAIL = 60
ANSWERS = 3
SEEN = 10_000


class Seen:
    """Remembers the last ``size`` ids; :meth:`add` says whether an id is new."""

    def __init__(self, size: int = SEEN) -> None:
        self._size = size
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, event_id: str) -> bool:
        if event_id in self._ids:
            self._ids.move_to_end(event_id)
            return False
        self._ids[event_id] = None
        if len(self._ids) > self._size:
            self._ids.popitem(last=False)
        return True


@dataclass
class StreamView:
    """One stream as it is shown. The deques hold the newest :data:`TAIL` entries."""

    stream_id: str
    tail: deque[Segment] = field(default_factory=lambda: deque(maxlen=TAIL))
    summary: SummaryEvent | None = None
    translations: deque[TranslationEvent] = field(default_factory=lambda: deque(maxlen=TAIL))
    answers: deque[AnswerEvent] = field(default_factory=lambda: deque(maxlen=ANSWERS))
    """Answers to questions, by whom so ever they were asked."""
    segments: int = 0
    last_seq: int = -1
    summaries: int = 0
    translated: int = 0
    ended: bool = False

    def take_segment(self, segment: Segment) -> None:
        """Add a segment of the input topic; partials are not shown."""
        if segment.type == "forget":
            self.tail.clear()
            self.translations.clear()
            self.answers.clear()
            self.summary = None
        if segment.type == "session_end":
            self.ended = True
        if segment.type != "segment" or not segment.is_final:
            return
        self.ended = False
        self.segments += 1
        seq = segment.seq if segment.seq is not None else self.last_seq + 1
        self.last_seq = max(self.last_seq, seq)
        self.tail.append(segment)

    def take_summary(self, event: SummaryEvent) -> bool:
        """Keep the event if it is newer than what is shown; says whether it was."""
        shown = self.summary
        if shown and (event.epoch, event.revision) <= (shown.epoch, shown.revision):
            return False
        self.summary = event
        self.summaries += 1
        return True

    def take_translation(self, event: TranslationEvent) -> bool:
        """Add or replace the translation of its unit; an older revision of a unit is dropped."""
        for place, other in enumerate(self.translations):
            if (other.unit_id, other.target_lang) == (event.unit_id, event.target_lang):
                if (event.epoch, event.revision) <= (other.epoch, other.revision):
                    return False
                self.translations[place] = event
                return True
        self.translations.append(event)
        self.translated += 1
        return True

    @property
    def behind(self) -> int:
        """Segments seen that no summary covers yet."""
        covered = self.summary.covers.to_seq if self.summary else -1
        return max(0, self.last_seq - covered)


class Follower:
    """Views of the streams asked for (None: of all that appear)."""

    def __init__(self, streams: list[str] | None = None) -> None:
        self._wanted = None if streams is None else set(streams)
        self._seen = Seen()
        self.views: dict[str, StreamView] = {s: StreamView(s) for s in streams or []}

    def take_segment(self, segment: Segment) -> StreamView | None:
        """The view the segment went to, None if it is not followed."""
        view = self._view(segment.stream_id)
        if view:
            view.take_segment(segment)
        return view

    def take_event(self, event: AnyEvent) -> StreamView | None:
        """The view the event changed; None if it is old, seen, or of a stream not followed."""
        view = self._view(event.stream_id)
        if view is None or (event.event_id and not self._seen.add(event.event_id)):
            return None
        if isinstance(event, SummaryEvent):
            changed = view.take_summary(event)
        elif isinstance(event, TranslationEvent):
            changed = view.take_translation(event)
        elif isinstance(event, AnswerEvent):
            view.answers.append(event)
            changed = True
        else:
            changed = True  # a user's own task: shown as it comes
        return view if changed else None

    def _view(self, stream_id: str) -> StreamView | None:
        if self._wanted is not None and stream_id not in self._wanted:
            return None
        return self.views.setdefault(stream_id, StreamView(stream_id))
