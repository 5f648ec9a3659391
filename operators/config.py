"""The engine's settings: one frozen object, checked once, refused with a clear sentence when wrong."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from operators.errors import ConfigError

LANGUAGES = {
    "ar": "Arabic",
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "zh": "Chinese",
}

DTYPES = ("auto", "fp32", "bf16", "int8")
DRAFTERS = ("none", "ngram", "previous", "combined")


@dataclass(frozen=True)
class OperatorConfig:
    """Everything the engine needs to know besides the model.

    All sizes are tokens. Memory per stream is a function of ``window``, ``slack``, the prefix length
    and the model's shape only: see :func:`operators.kv_cache.bytes_per_stream`.
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
    branches: int = 8
    """Scratch regions: answers in the making at once, over all streams."""
    ingest_budget: int = 256
    """Prefill tokens per step over all streams: bounds how long a step can delay a decode."""

    update_tokens: int = 384
    """A rolling summary is due after this many new transcript tokens…"""
    update_interval_s: float = 0.0
    """…or after this many seconds with anything new (0 = never by time)."""
    summary_tokens: int = 128
    """Upper bound of one summary update's answer."""
    ledger_tokens: int = 320
    """Token budget of the ledger shown to the model; above it the ledger is compacted."""
    targets: tuple[str, ...] = ()
    """Language codes every final segment is translated into."""
    translation_unit_tokens: int = 96
    """Longer segments are translated in pieces of at most this many tokens."""

    drafter: str = "combined"
    """Where draft tokens come from: none, ngram, previous, combined (previous, then n-gram)."""
    max_draft: int = 8
    """Upper bound of k, the draft tokens of one verify."""
    dtype_ingest: str = "auto"
    dtype_generation: str = "auto"
    max_text_bytes: int = 262_144
    """A segment with more text than this is refused (dead letter)."""
    max_queue: int = 256
    """Segments of one stream waiting in the engine; feed refuses more (backpressure)."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Overrides of the files in operators/tasks/prompts, by name without suffix."""

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, what: str) -> None:
            if not ok:
                raise ConfigError(f"{name}={getattr(self, name)!r}: {what}")

        need(self.window >= 16, "window", "at least 16 tokens")
        need(self.slack >= 1, "slack", "at least 1 token")
        need(self.branch_tokens >= 8, "branch_tokens", "at least 8 tokens")
        need(self.slots >= 1, "slots", "at least one stream")
        need(self.branches >= 1, "branches", "at least one branch")
        need(self.ingest_budget >= 1, "ingest_budget", "at least 1 token per step")
        need(1 <= self.update_tokens <= self.window, "update_tokens", "between 1 and the window")
        need(self.update_interval_s >= 0, "update_interval_s", "seconds, 0 switches it off")
        need(self.summary_tokens >= 8, "summary_tokens", "at least 8 tokens")
        need(self.translation_unit_tokens >= 8, "translation_unit_tokens", "at least 8 tokens")
        need(self.max_draft >= 0, "max_draft", "0 switches speculation off")
        need(self.max_queue >= 1, "max_queue", "at least 1 segment")
        need(self.max_text_bytes >= 1, "max_text_bytes", "at least 1 byte")
        need(self.drafter in DRAFTERS, "drafter", f"one of {', '.join(DRAFTERS)}")
        need(self.dtype_ingest in DTYPES, "dtype_ingest", f"one of {', '.join(DTYPES)}")
        need(self.dtype_generation in DTYPES, "dtype_generation", f"one of {', '.join(DTYPES)}")
        for code in self.targets:
            if code not in LANGUAGES:
                raise ConfigError(
                    f"targets: unknown language code {code!r}; known: {', '.join(sorted(LANGUAGES))}"
                )

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> OperatorConfig:
        """Build from plain values (as they cross a process border); unknown names are refused."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = set(values) - known
        if unknown:
            raise ConfigError(f"unknown operator settings: {', '.join(sorted(unknown))}")
        values = dict(values)
        if "targets" in values:
            values["targets"] = tuple(values["targets"])  # type: ignore[arg-type]
        return cls(**values)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)
