"""llama.cpp on the same answers, through its low-level batch interface (``llama-cpp-python``).

Every stream is a sequence of one context; a batch holds the next token of every answer in the making
and fills up with prompt tokens of others (continuous batching), as llama-server's does. What a
sequence already has in memory is used again, in one of two ways:

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

from pipelines.benchmarks.meeting_job import Ask, Job
from pipelines.benchmarks.peer_result import Took

BATCH = 512
"""llama.cpp's own default of tokens in one forward."""
ROOM = 640
"""Tokens of instruction and answer behind the window."""


@dataclass
class _Answer:
    """One answer in the making: prompt tokens still to be run, tokens still to be generated."""

    ask: Ask
    prompt: deque[int]
    position: int
    left: int
    token: int | None = None


@dataclass
class _Sequence:
    """A stream's place in the context: the tokens it holds, and what is to be answered."""

    number: int
    held: list[int] = field(default_factory=list)
    window_end: int = 0
    """Transcript tokens heard when ``held`` was made."""
    window_length: int = 0
    asks: deque[Ask] = field(default_factory=deque)
    answer: _Answer | None = None


class LlamaCpp:
    """One loaded model with room for ``streams`` sequences. Raises ImportError without the extra."""

    def __init__(self, file: Path, *, streams: int, window: int, prefix: int, threads: int) -> None:
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
        settings.n_ctx = streams * per_sequence
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_seq_max = streams
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
        sequences = [self._warm(job, number, shift) for number in range(len(job.streams))]
        began = time.perf_counter()
        prefilled = generated = 0
        while self._take_up(job, sequences, shift):
            ran, made = self._step(sequences)
            prefilled, generated = prefilled + ran, generated + made
        seconds = time.perf_counter() - began
        return Took(seconds, len(job.asks), prefilled, generated)

    def _warm(self, job: Job, number: int, shift: bool) -> _Sequence:
        """With a window that rolls from the first answer on, only a shifted cache can use it again."""
        stream = job.streams[number]
        held = [*job.prefix, *(stream.transcript[: stream.warm] if shift else ())]
        for at in range(0, len(held), BATCH):
            block = held[at : at + BATCH]
            self._decode([(number, token, at + i, False) for i, token in enumerate(block)])
        return _Sequence(number, held, stream.warm, stream.warm, deque(stream.asks))

    # --- what comes next ---------------------------------------------------------------------

    def _take_up(self, job: Job, sequences: list[_Sequence], shift: bool) -> bool:
        """Begin an answer in every sequence that has none; False once nothing is left to do."""
        for sequence in sequences:
            if sequence.answer is None and sequence.asks:
                ask = sequence.asks.popleft()
                wanted = job.prompt(ask)
                if shift:
                    self._shift(job, sequence, ask)
                kept = min(_common(sequence.held, wanted), len(wanted) - 1)
                self._api.llama_memory_seq_rm(self._memory, sequence.number, kept, -1)
                sequence.held = wanted
                sequence.window_end, sequence.window_length = ask.fork, len(job.seen(ask))
                sequence.answer = _Answer(ask, deque(wanted[kept:]), kept, ask.output)
        return any(sequence.answer for sequence in sequences)

    def _shift(self, job: Job, sequence: _Sequence, ask: Ask) -> None:
        """Take out what has left the window and move the rest up to where the prompt has it."""
        start = len(job.prefix)
        gone = (ask.fork - len(job.seen(ask))) - (sequence.window_end - sequence.window_length)
        end = start + sequence.window_length
        del sequence.held[end:]
        self._api.llama_memory_seq_rm(self._memory, sequence.number, end, -1)
        if gone > 0:
            del sequence.held[start : start + gone]
            self._api.llama_memory_seq_rm(self._memory, sequence.number, start, start + gone)
            self._api.llama_memory_seq_add(self._memory, sequence.number, start + gone, -1, -gone)

    # --- one forward -------------------------------------------------------------------------

    def _step(self, sequences: list[_Sequence]) -> tuple[int, int]:
        """One batch: returns (prompt tokens run, tokens generated)."""
        rows: list[tuple[int, int, int, bool]] = []
        wanting: list[tuple[int, _Sequence]] = []
        prefilled = 0
        answers = [(s, s.answer) for s in sequences if s.answer is not None]
        for sequence, answer in answers:
            if answer.token is not None:
                wanting.append((len(rows), sequence))
                rows.append((sequence.number, answer.token, answer.position, True))
                answer.position += 1
        for sequence, answer in answers:
            while answer.prompt and len(rows) < BATCH:
                last = len(answer.prompt) == 1
                if last:
                    wanting.append((len(rows), sequence))
                rows.append((sequence.number, answer.prompt.popleft(), answer.position, last))
                answer.position += 1
                prefilled += 1
        self._decode(rows)
        for at, sequence in wanting:
            assert sequence.answer is not None
            sequence.answer.token = self._best(at)
            sequence.answer.left -= 1
            if sequence.answer.left == 0:
                sequence.answer = None
        return prefilled, len(wanting)

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
