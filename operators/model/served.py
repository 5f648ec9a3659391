"""A model that runs elsewhere: it is given text and gives text back.

:class:`ServedModel` stands where a :class:`DecoderModel` does. Its cache has no tensors, only the
engine's bookkeeping; its tokens are stretches of text (:class:`TextTokenizer`), so that tasks, which
write prompts in tokens, need not know. :func:`conversation` turns such a prompt into chat messages.
Whatever answers them implements :class:`TextModel`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from operators.cache.batch import Row
from operators.cache.kv_cache import KvCache, KvLayout, KvShape
from operators.config import Sampling
from operators.errors import ConfigError, ModelError
from operators.model.loader import DecoderModel, Role
from operators.model.tokenizer import Examples
from operators.observer import Observer

BYTES_PER_TOKEN = 4
"""Of UTF-8: about what tokenizers reach in English; other scripts take one to two tokens a letter."""
SYSTEM, USER, ASSISTANT = -1, -2, -3
"""Tokens that begin a turn of the conversation; no text encodes to them."""
_ROLES = {SYSTEM: "system", USER: "user", ASSISTANT: "assistant"}


class Message(NamedTuple):
    """One turn. ``role``: system, user or assistant."""

    role: str
    text: str


class Form(NamedTuple):
    """A grammar for an answer: see :class:`operators.decoding.constraints.Grammar`."""

    kind: str
    text: str


@dataclass(frozen=True)
class TextRequest:
    """One answer wanted. ``opening``: words the answer is made to begin with; they are not part of what
    comes back. ``ends``: whether an output is complete. ``form``: what the answer may be. ``choices``:
    texts to be weighed as the beginning of the answer; nothing else is generated then. Safe to use from
    another thread."""

    messages: tuple[Message, ...]
    opening: str
    max_tokens: int
    ends: Callable[[str], bool] = lambda text: False
    form: Form | None = None
    choices: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class TextAnswer:
    """``finish_reason``: stop or length. ``weights``: one for each choice, normalised. Counts are of the
    server's tokens. Seconds since the request was submitted."""

    text: str = ""
    finish_reason: str = "stop"
    weights: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    first_token_s: float = 0.0
    seconds: float = 0.0


class TextModel(Protocol):
    """Answers conversations, several at once.

    ``name`` and ``identity`` (where it runs, as what) stand in events and snapshots; ``context``: tokens
    of a prompt and its answer, None if not known.
    """

    name: str
    identity: str
    context: int | None

    def submit(self, request: TextRequest) -> Future[TextAnswer]:
        """Returns at once. The future raises SegmentError where this request is refused, and another
        LongstreamError where the model cannot be had. Cancelling it gives the request up."""
        ...

    def measure(self, observer: Observer) -> None:
        """Report what was counted since the last call."""
        ...

    def close(self) -> None: ...


class TextTokenizer:
    """Up to four bytes of text are one token, which is their value: lossless, without a vocabulary."""

    eos_ids: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = []
        piece = b""
        for letter in text:
            data = letter.encode("utf-8", "replace")
            if len(piece) + len(data) > BYTES_PER_TOKEN:
                tokens.append(_number(piece))
                piece = b""
            piece += data
        return [*tokens, _number(piece)] if piece else tokens

    def decode(self, ids: Sequence[int]) -> str:
        """Raises ValueError for what no text encodes to, but for the beginnings of turns."""
        return b"".join(_piece(i) for i in ids if i not in _ROLES).decode("utf-8", "replace")

    def vocabulary(self) -> dict[str, int]:
        return {}

    def first(self, word: str) -> int:
        """The whole word: what its first token is, the server knows."""
        return _number(word.encode())

    def chat(self, system: str, user: str, examples: Examples = ()) -> tuple[list[int], list[int]]:
        before, _, after = user.partition("{window}")
        encode = self.encode
        head = [SYSTEM, *encode(system)]
        for said, answer in examples:
            head += [USER, *encode(said), ASSISTANT, *encode(answer)]
        head += [USER, *encode(before)]
        return head, [*encode(after), ASSISTANT]


def _number(piece: bytes) -> int:
    return int.from_bytes(b"\1" + piece, "big")  # the 1 keeps bytes of zero


def _piece(token: int) -> bytes:
    if token < 0x100:
        raise ValueError(f"{token} is no token of a text")
    return token.to_bytes((token.bit_length() + 7) // 8, "big")[1:]


def conversation(tokens: Sequence[int]) -> tuple[tuple[Message, ...], str]:
    """A prompt as its turns, and how the answer begins. What stands before the first turn (the
    beginning of a prompt that was cut) is the user's."""
    decode = TextTokenizer().decode
    turns: list[tuple[int, list[int]]] = []
    for token in tokens:
        if token in _ROLES:
            turns.append((token, []))
            continue
        if not turns:
            turns.append((USER, []))
        turns[-1][1].append(token)
    opening = decode(turns.pop()[1]) if turns and turns[-1][0] == ASSISTANT else ""
    messages = [Message(_ROLES[role], decode(said)) for role, said in turns]
    return tuple(m for m in messages if m.text.strip()), opening


class ServedModel(DecoderModel):
    """A :class:`TextModel` in a DecoderModel's place: sizes and bookkeeping, no weights.

    ``forward`` only advances the rows; answers come from ``text``.
    """

    def __init__(self, text: TextModel) -> None:
        self.text, self.name = text, text.name
        self.tokenizer = TextTokenizer()
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.dtypes = {"prefill": "served", "decode": "served"}
        self.shape = KvShape(layers=1, kv_heads=1, head_dim=0)
        self.max_context, self.vocab_size = text.context or 2**31, 0
        self._networks = {}
        self._fingerprint = hashlib.sha256(text.identity.encode()).hexdigest()[:16]

    @property
    def tied(self) -> bool:
        return False

    def use_for_decode(self, dtype: str) -> None:
        raise ModelError("a served model's weights are chosen where it runs")

    def new_cache(self, layout: KvLayout, *, slots: int, branches: int) -> KvCache:
        """A cache without tensors. Raises ConfigError when the server's context is too small."""
        size = layout.sinks + layout.window + layout.branch_tokens
        if size > self.max_context:
            raise ConfigError(
                f"{self.name} takes {self.max_context} tokens, but the pinned prefix {layout.sinks} + "
                f"window {layout.window} + branch_tokens {layout.branch_tokens} need {size}: lower "
                "operator.window, or give the server more context"
            )
        return KvCache(
            self.shape,
            layout,
            slots=slots,
            branches=branches,
            dtype=self.dtype,
            device=self.device,
        )

    def forward(self, role: Role, cache: KvCache, rows: Sequence[Row]) -> Tensor:
        for row in rows:
            (row.branch or row.stream).length += len(row.tokens)
        return torch.zeros(0, 0)
