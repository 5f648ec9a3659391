"""llama.cpp on the same answers, through its low-level batch interface (``llama-cpp-python``).

Every stream has a sequence for its window and some more for answers, each begun with a copy of the
window's memory, so that a stream has several answers in the making, as ours has. A batch holds the
next token of every answer and fills up with prompt tokens (continuous batching), as llama-server's
does. What the window's sequence already has in memory is used again, in one of two ways:

* ``prefix``: the tokens that the old and the new prompt begin with (the pinned prefix, once the window
  rolls): exact;
* ``shift``: besides, the window's keys are moved up over what left it (``seq_rm``, ``seq_add``:
  llama.cpp's context shift, which llama-server offers as ``--cache-reuse``). The kept keys and values
  remember what was evicted, as ours do.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.lab.benchmarks.meeting_job import Ask, Job
from pipelines.lab.benchmarks.peer_result import Took

BATCH = 512
"""llama.cpp's own default of tokens in one forward."""
ROOM = 640
"""Tokens of instruction and answer behind the window."""


@dataclass
class _Row:
    """Tokens still to be run on one sequence, and where the next one stands."""

    sequence: int
    prompt: deque[int]
    position: int


@dataclass
class _Answer(_Row):
    """An answer in the making; ``left``: tokens still to be generated."""

    left: int = 0
    token: int | None = None


@dataclass
class _Stream:
    """A stream's window in its ``home`` sequence, the sequences for its answers, and its asks."""

    home: int
    free: list[int]
    held: list[int]
    window_end: int
    """Transcript tokens heard when ``held`` was made."""
    window_length: int
    asks: deque[Ask]
    reading: _Row | None = None
    """What the window still lacks for the next ask."""
    answers: list[_Answer] = field(default_factory=list)


class LlamaCpp:
    """One loaded model with room for ``streams`` windows and ``parallel`` answers of each. Raises
    ImportError without the extra."""

    def __init__(
        self,
        file: Path,
        *,
        streams: int,
        parallel: int,
        window: int,
        prefix: int,
        threads: int,
    ) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)  # it is talkative
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        per_sequence = -(-(prefix + window + ROOM) // 256) * 256
        self._each = 1 + parallel
        settings.n_ctx = streams * self._each * per_sequence
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_seq_max = streams * self._each
        settings.n_threads = settings.n_threads_batch = threads
        settings.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError(f"llama.cpp could not make a context for {file}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        weakref.finalize(self, _free, llama_cpp, self._batch, self._context, self._model)

    @property
    def precision(self) -> str:
        """How the weights are kept, in llama.cpp's words."""
        buffer = ctypes.create_string_buffer(256)
        self._api.llama_model_desc(self._model, buffer, len(buffer))
        return f"{buffer.value.decode()}, KV f16"

    def run(self, job: Job, shift: bool) -> Took:
        """The whole job. Before the clock starts each stream has in memory what it can use again."""
        self._api.llama_memory_clear(self._memory, True)
        streams = [self._warm(job, number, shift) for number in range(len(job.streams))]
        began = time.perf_counter()
        prefilled = generated = 0
        while self._take_up(job, streams, shift):
            ran, made = self._step(streams)
            prefilled, generated = prefilled + ran, generated + made
        seconds = time.perf_counter() - began
        return Took(seconds, len(job.asks), prefilled, generated)

    def _warm(self, job: Job, number: int, shift: bool) -> _Stream:
        """With a window that rolls from the first answer on, only a shifted cache can use it again."""
        stream, home = job.streams[number], number * self._each
        held = [*job.prefix, *(stream.transcript[: stream.warm] if shift else ())]
        for at in range(0, len(held), BATCH):
            block = held[at : at + BATCH]
            self._decode([(home, token, at + i, False) for i, token in enumerate(block)])
        free = list(range(home + 1, home + self._each))
        return _Stream(home, free, held, stream.warm, stream.warm, deque(stream.asks))

    # --- what comes next ---------------------------------------------------------------------

    def _take_up(self, job: Job, streams: list[_Stream], shift: bool) -> bool:
        """Bring windows to where the next answers are asked for, and begin those; False once nothing
        is left to do."""
        for stream in streams:
            while stream.asks:
                if stream.asks[0].alone:
                    if not stream.free:
                        break
                    self._begin_alone(stream)
                    continue
                if stream.reading is None:
                    self._read(job, stream, shift)
                    assert stream.reading is not None
                if stream.reading.prompt or not stream.free:
                    break
                self._begin(job, stream)
        return any(stream.answers or stream.asks for stream in streams)

    def _read(self, job: Job, stream: _Stream, shift: bool) -> None:
        """See what of the next ask's window is there."""
        ask = stream.asks[0]
        wanted = job.before(ask)
        if shift:
            self._shift(job, stream, ask)
        kept = _common(stream.held, wanted)
        self._api.llama_memory_seq_rm(self._memory, stream.home, kept, -1)
        stream.held = wanted
        stream.window_end, stream.window_length = ask.fork, len(job.seen(ask))
        stream.reading = _Row(stream.home, deque(wanted[kept:]), kept)

    def _shift(self, job: Job, stream: _Stream, ask: Ask) -> None:
        """Take out what has left the window and move the rest up to where the prompt has it."""
        start, home = len(job.prefix), stream.home
        gone = (ask.fork - len(job.seen(ask))) - (stream.window_end - stream.window_length)
        if gone > 0:
            del stream.held[start : start + gone]
            self._api.llama_memory_seq_rm(self._memory, home, start, start + gone)
            self._api.llama_memory_seq_add(self._memory, home, start + gone, -1, -gone)

    def _begin(self, job: Job, stream: _Stream) -> None:
        """The window is read: its copy goes on with the instruction."""
        ask, number = stream.asks.popleft(), stream.free.pop()
        self._api.llama_memory_seq_cp(self._memory, stream.home, number, -1, -1)
        at = len(stream.held)
        stream.answers.append(_Answer(number, deque(ask.instruction), at, left=ask.output))
        stream.reading = None

    def _begin_alone(self, stream: _Stream) -> None:
        """An answer that sees nothing but its instruction has a sequence to itself."""
        ask, number = stream.asks.popleft(), stream.free.pop()
        self._api.llama_memory_seq_rm(self._memory, number, -1, -1)
        stream.answers.append(_Answer(number, deque(ask.instruction), 0, left=ask.output))

    # --- one forward -------------------------------------------------------------------------

    def _step(self, streams: list[_Stream]) -> tuple[int, int]:
        """One batch: returns (prompt tokens run, tokens generated)."""
        rows: list[tuple[int, int, int, bool]] = []
        wanting: list[tuple[int, _Answer]] = []
        answers = [answer for stream in streams for answer in stream.answers]
        for answer in answers:
            if answer.token is not None:
                wanting.append((len(rows), answer))
                rows.append((answer.sequence, answer.token, answer.position, True))
                answer.position += 1
        decoded = len(rows)
        for row in [*answers, *(s.reading for s in streams if s.reading is not None)]:
            while row.prompt and len(rows) < BATCH:
                last = isinstance(row, _Answer) and len(row.prompt) == 1
                if isinstance(row, _Answer) and last:
                    wanting.append((len(rows), row))
                rows.append((row.sequence, row.prompt.popleft(), row.position, last))
                row.position += 1
        self._decode(rows)
        for at, answer in wanting:
            answer.token = self._best(at)
            answer.left -= 1
        for stream in streams:
            stream.free += [a.sequence for a in stream.answers if a.left <= 0]
            stream.answers = [a for a in stream.answers if a.left > 0]
        return len(rows) - decoded, len(wanting)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows of (sequence, token, position, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for at, (number, token, position, wanted) in enumerate(rows):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, number
            batch.logits[at] = wanted
        status = self._api.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode failed with {status} on {len(rows)} tokens")

    def _best(self, at: int) -> int:
        logits = self._api.llama_get_logits_ith(self._context, at)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab,)).argmax())


def _free(api: Any, batch: Any, context: Any, model: Any) -> None:
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)


def _common(held: list[int], wanted: list[int]) -> int:
    """Length of the common beginning."""
    for at, (mine, its) in enumerate(zip(held, wanted, strict=False)):
        if mine != its:
            return at
    return min(len(held), len(wanted))
