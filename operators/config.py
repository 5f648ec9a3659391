"""The engine's settings: one frozen object, checked once, refused with a clear sentence when wrong."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from operators import commit, languages
from operators.errors import ConfigError
from operators.redaction import KINDS

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8", "w8a8", "int4", "q4")
PREFILL_DTYPES = ("auto", "fp32", "bf16", "fp16", "w8a8")
DRAFTERS = ("auto", "none", "ngram", "suffix", "previous", "combined", "draft")
ATTENTION = ("torch", "triton", "flashinfer")
METHODS = ("select", "lines")
STYLES = ("bullets", "minutes", "executive")
NOISE_RULES = ("pass", "drop", "translate")
TASKS = ("summary", "compaction", "translation", "answer")
ACCEPTANCES = ("coupled", "rejection")


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from the logits. The default is greedy decoding."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Only so many of the most likely tokens (0 = all)."""
    top_p: float = 1.0
    """Only the most likely tokens that together have this probability."""
    repetition_penalty: float = 1.0
    """Logits of tokens already in the answer are divided (if negative: multiplied) by this."""
    seed: int = 0
    acceptance: str = "coupled"
    """See :mod:`operators.decoding.verify`."""

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, what: str) -> None:
            if not ok:
                raise ConfigError(f"{name}={getattr(self, name)!r}: {what}")

        need(0 <= self.temperature < math.inf, "temperature", "0 (greedy) or above")
        need(self.top_k >= 0, "top_k", "a number of tokens, 0 for all")
        need(0 < self.top_p <= 1, "top_p", "above 0, at most 1")
        need(0 < self.repetition_penalty < math.inf, "repetition_penalty", "above 0, 1 for none")
        need(self.acceptance in ACCEPTANCES, "acceptance", f"one of {', '.join(ACCEPTANCES)}")

    @property
    def plain(self) -> bool:
        """Nothing but the most likely token is ever asked for."""
        return self.temperature == 0 and self.repetition_penalty == 1


@dataclass(frozen=True)
class OperatorConfig:
    """Everything the engine needs to know besides the model.

    All sizes are tokens. Memory per stream is a function of ``window``, ``slack``, the prefix length
    and the model's shape only: see :func:`operators.cache.kv_cache.bytes_per_stream`.
    """

    window: int = 1024
    """W: how many transcript tokens before the current one stay visible."""
    slack: int = 128
    """Ring size is window + slack: the largest ingest block, and how far ingest may run past an
    open branch."""
    branch_tokens: int = 640
    """B: scratch of one branch (instruction, ledger and generated text together)."""
    slots: int = 8
    """Streams resident in device memory at once."""
    host_streams: int = 64
    """Streams without work that stay in host memory when others need their slots; where there is a
    store, more go there, least recently used first."""
    host_bytes: int = 4 << 30
    """Host memory for the KV of streams without work, all together. Beyond it the store takes them,
    least recently used first; without one their KV is let go, and they go on from their window's text
    (``restored: replay``). 0: no bound."""
    branches: int = 8
    """Scratch regions: answers in progress at once, over all streams."""
    prefill_budget: int = 256
    """Prefill tokens per step over all streams: bounds how long a step can delay a decode."""

    update_tokens: int = 384
    """A rolling summary is due after this many new transcript tokens…"""
    update_interval_s: float = 0.0
    """…or after this many seconds with anything new (0 = never by time)."""
    update_silence_s: float = 0.0
    """…or when nothing was said for this many seconds after something new (0 = never)."""
    topic_shift: float = 0.0
    """…or when the newest turns share so little with those before them: 1 is nothing, 0.8 a fifth of
    their content (0 = never). At least a quarter of ``update_tokens`` lies between two updates."""
    update_adaptive: bool = False
    """After an update that changed no note the next ones are due after twice, then four times as many
    tokens, until one changes something (at most the window)."""
    skip_behind: int = 0
    """With so many segments of a stream waiting, updates by tokens or time are skipped until the window
    needs one, which says ``updates_skipped`` (0 = never: every update is made, however late)."""
    summary_method: str = "select"
    """How an update is written: select (every turn is judged, the weightiest are written one by one) or
    lines (one answer of several lines over the window)."""
    summary_tokens: int = 128
    """Upper bound of one summary update's answer."""
    ledger_tokens: int = 320
    """Token budget of the ledger shown to the model; above it the ledger is compacted."""
    ledger_bytes: int = 49_152
    """Bytes of the durable ledger (text of its items). Above it topics told twice, what is superseded,
    withdrawn or done, then the oldest topics go to the archive, which says ``ledger_trimmed``."""
    archive_bytes: int = 98_304
    """Bytes of the archive, the part of a stream's state that answers questions and that events do not
    show. Above it the oldest items are forgotten, which says ``archive_trimmed`` (0: no archive)."""
    view_notes: int = 24
    """Notes in a summary's ``text``, by importance: decisions and tasks, a quarter for open questions, a
    third for topics. ``items`` has the whole ledger."""
    targets: tuple[str, ...] = ()
    """BCP 47 tags (fr, pt-BR, zh-Hant, sr-Latn) of the languages every final segment is published in,
    unless its stream asks for others. A segment that is already in one of them passes as it is."""
    allowed_targets: tuple[str, ...] = ()
    """BCP 47 tags that a stream may ask for; empty: all that are known."""
    max_targets: int = 8
    """Languages that one stream may ask for at once (0 = streams cannot choose)."""
    max_question: int = 2000
    """Characters of a question."""
    max_glossary: int = 200
    """Terms of one stream's glossary."""
    max_participants: int = 100
    """Participants one stream may name."""
    max_instructions: int = 2000
    """Characters of one stream's instructions."""
    max_template: int = 16_384
    """Characters of one stream's template."""
    translate_partials: bool = False
    """Also translate partial hypotheses (``is_final: false``), in the capacity that finals leave free:
    events with ``is_final`` false, empty ``committed`` and a ``tail`` that may change. Of hypotheses
    that come faster than they can be translated only the newest is."""
    translation_policy: str = "finals"
    """What of a partial hypothesis's translation is ``committed``, never to change: nothing (finals),
    what the last N have in common (local-agreement-N), all but the last K words (wait-K), or what
    attends to source older than F tokens (alignatt, alignatt-F). Any but finals needs
    ``translate_partials``."""
    translation_unit_tokens: int = 96
    """Longer segments are translated in pieces of at most this many tokens, each published when it is
    done."""
    translation_noise: str = "pass"
    """What becomes of segments in which nothing is said ([BLANK_AUDIO], music, a phrase that a
    recogniser repeats without end): pass (published as they are), drop (not published) or translate."""

    drafter: str = "auto"
    """Where draft tokens come from: none, ngram, suffix (previous, then matches of any length, by a
    suffix automaton; unmeasured), previous (output), combined (previous, then ngram),
    draft (the draft model or head), auto (whichever of them is worth most at the moment). Changes the
    speed only, not the text (exactly so with dtype fp32)."""
    max_draft: int = 16
    """Upper bound of k, the draft tokens of one verify. How many are drafted follows from how many
    were accepted lately and what a forward costs on this machine."""
    draft_model: str = ""
    """A smaller model with the same vocabulary that drafts for the model; none by default. It has a
    window of its own, which counts in the memory per stream."""
    draft_head: str = ""
    """A small network that drafts from the model's own last hidden states, trained for this very model
    (EAGLE-1): a safetensors file, or a folder with model.safetensors. In place of draft_model, whose
    pin (draft_model_sha256) is its own then; what it gains is unmeasured."""

    temperature: float = 0.0
    """Above 0 the tokens of an answer are sampled; 0 always takes the most likely one (greedy)."""
    top_k: int = 0
    """Sample among this many most likely tokens (0 = all)."""
    top_p: float = 1.0
    """Sample among the most likely tokens that together have this probability."""
    repetition_penalty: float = 1.0
    """Above 1 tokens that are already in the answer become less likely, also in greedy decoding."""
    sampling_seed: int = 0
    """Another seed gives other samples; the same seed the same answer to the same words."""
    sampling_acceptance: str = "coupled"
    """How a draft model's tokens are accepted when sampling: coupled (same text with any drafter and
    load) or rejection (accepts more drafts; the text then depends on them, its distribution not)."""
    sampled_tasks: tuple[str, ...] = ()
    """Kinds of answer the sampling settings hold for (summary, compaction, translation, answer); the
    others stay greedy. Empty: all."""
    dtype_prefill: str = "auto"
    """Numbers of the weights while text is read: fp32, bf16, fp16, w8a8. auto is measured at first
    start and kept."""
    dtype_decode: str = "auto"
    """The same while answers are written; also int8, int4 and q4."""
    compile: bool = False
    """Run the parts of fp32 and bf16 layers around attention through torch.compile, which needs a C++
    compiler (on CUDA: Triton) and makes the first steps slow. What it gains is unmeasured."""
    attention: str = "torch"
    """What attends: torch (its own operators), triton (a kernel for CUDA, checked in Triton's
    interpreter and unmeasured), or flashinfer (its kernels for CUDA, bf16 or fp16, heads of 64, 128 or
    256; install flashinfer-python; unmeasured)."""
    redact: tuple[str, ...] = ()
    """Kinds of personal data replaced by ``[kind]`` in every text before it is used: email, iban, card,
    ip, phone. Empty: none."""
    max_text_bytes: int = 262_144
    """A segment with more text than this is refused (dead letter)."""
    max_queue: int = 256
    """Segments of one stream waiting in the engine; feed refuses more (backpressure)."""
    prompt_pack: str = "auto"
    """The model's family: how its chat template is filled and what ends an answer. auto: told by the
    template; else smollm, qwen3 (no thinking), qwen2.5, phi, chatml, llama3, gemma, mistral, plain."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Overrides of the files in operators/tasks/prompts, by name without suffix; ``judge.pt`` is
    the judge's for turns in Portuguese."""

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, what: str) -> None:
            if not ok:
                raise ConfigError(f"{name}={getattr(self, name)!r}: {what}")

        need(self.window >= 16, "window", "at least 16 tokens")
        need(self.slack >= 1, "slack", "at least 1 token")
        need(self.branch_tokens >= 8, "branch_tokens", "at least 8 tokens")
        need(self.slots >= 1, "slots", "at least one stream")
        need(self.host_streams >= 0, "host_streams", "0 sends every idle stream to the store")
        need(self.host_bytes >= 0, "host_bytes", "bytes, 0 for no bound")
        need(self.branches >= 1, "branches", "at least one branch")
        need(self.prefill_budget >= 1, "prefill_budget", "at least 1 token per step")
        need(1 <= self.update_tokens <= self.window, "update_tokens", "between 1 and the window")
        need(self.update_interval_s >= 0, "update_interval_s", "seconds, 0 switches it off")
        need(self.update_silence_s >= 0, "update_silence_s", "seconds, 0 switches it off")
        need(0 <= self.topic_shift <= 1, "topic_shift", "0 to 1, 0 switches it off")
        need(self.skip_behind >= 0, "skip_behind", "segments, 0 switches it off")
        need(self.attention in ATTENTION, "attention", f"one of {', '.join(ATTENTION)}")
        need(self.summary_method in METHODS, "summary_method", f"one of {', '.join(METHODS)}")
        need(self.ledger_bytes >= 1024, "ledger_bytes", "at least 1024 bytes")
        need(self.archive_bytes >= 0, "archive_bytes", "bytes, 0 for no archive")
        need(self.view_notes >= 1, "view_notes", "at least 1 note")
        need(self.summary_tokens >= 8, "summary_tokens", "at least 8 tokens")
        for name in ("targets", "question", "glossary", "participants", "instructions", "template"):
            need(getattr(self, f"max_{name}") >= 0, f"max_{name}", "0 or more")
        need(self.translation_unit_tokens >= 8, "translation_unit_tokens", "at least 8 tokens")
        early = commit.policy(self.translation_policy).commits
        need(self.translate_partials or not early, "translation_policy", "needs translate_partials")
        noise = f"one of {', '.join(NOISE_RULES)}"
        need(self.translation_noise in NOISE_RULES, "translation_noise", noise)
        need(self.max_draft >= 0, "max_draft", "0 switches speculation off")
        need(self.max_queue >= 1, "max_queue", "at least 1 segment")
        need(self.max_text_bytes >= 1, "max_text_bytes", "at least 1 byte")
        by_model = bool(self.draft_model or self.draft_head)
        need(self.drafter != "draft" or by_model, "drafter", "set draft_model or draft_head too")
        need(not (self.draft_model and self.draft_head), "draft_head", "not beside draft_model")
        need(self.drafter in DRAFTERS, "drafter", f"one of {', '.join(DRAFTERS)}")
        known = f"one of {', '.join(PREFILL_DTYPES)}"
        need(self.dtype_prefill in PREFILL_DTYPES, "dtype_prefill", known)
        need(self.dtype_decode in DTYPES, "dtype_decode", f"one of {', '.join(DTYPES)}")
        for kind in self.redact:
            need(kind in KINDS, "redact", f"of {', '.join(KINDS)}")
        for task in self.sampled_tasks:
            need(task in TASKS, "sampled_tasks", f"of {', '.join(TASKS)}")
        accepts = f"one of {', '.join(ACCEPTANCES)}"
        need(self.sampling_acceptance in ACCEPTANCES, "sampling_acceptance", accepts)
        self._sampling()  # its numbers are checked there
        for name in ("targets", "allowed_targets"):
            for tag in getattr(self, name):
                try:
                    languages.canonical(tag)
                except ConfigError as error:
                    raise ConfigError(f"{name}: {error}") from None

    def sampling(self, task: str) -> Sampling:
        """How answers of this kind (``translation:fr`` is a translation) choose their tokens."""
        if self.sampled_tasks and task.partition(":")[0] not in self.sampled_tasks:
            return Sampling()
        return self._sampling()

    def _sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.sampling_seed,
            acceptance=self.sampling_acceptance,
        )

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> OperatorConfig:
        """Build from plain values (as they cross a process border); unknown names are refused."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = set(values) - known
        if unknown:
            raise ConfigError(f"unknown operator settings: {', '.join(sorted(unknown))}")
        values = dict(values)
        for name in ("targets", "allowed_targets", "redact", "sampled_tasks"):
            if name in values:
                values[name] = tuple(values[name])  # type: ignore[arg-type]
        return cls(**values)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)
