"""From logits to a token: temperature, top-k, top-p, repetition penalty, and reproducible noise.

The noise of a place in a stream is a pure function of (seed, stream, epoch, task, prompt, absolute
position, purpose), made by a counter-based generator (Philox 4x64; Salmon et al. 2011). Nothing is
drawn from a running generator, so the noise of a place is the same after a replay or a rollback, with
other rows in the batch, and in another process.

A token is picked by an exponential race: the least of ``e / probability`` with an exponential ``e``
per token of the vocabulary, which has exactly the wanted distribution. Because the noise belongs to
the token and not to its rank, two similar distributions mostly pick the same token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Philox
from torch import Tensor

from operators.config import Sampling

TOKEN, DRAFT, ACCEPT, RESIDUAL = range(4)
"""Purposes of noise at one place; each has its own, for they have to be independent."""
_HEAD = 1024
"""Tokens looked at first when top-p is sought: sorting a whole vocabulary is slow."""


def sampler_key(stream_id: str, epoch: int, task: str, seed: int, prompt: Sequence[int]) -> bytes:
    """The key of an answer's noise. ``prompt`` distinguishes two answers of one kind that begin at the
    same place."""
    name = f"{seed}\x1f{epoch}\x1f{task}\x1f{stream_id}\x1f{','.join(map(str, prompt))}"
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


class Sampler:
    """Chooses tokens for one answer. ``start`` is the stream's absolute position of its first token;
    positions given to the methods count from there."""

    def __init__(self, sampling: Sampling, key: bytes = bytes(16), start: int = 0) -> None:
        self.sampling, self._start = sampling, start
        self._key = np.frombuffer(key, dtype=np.uint64)

    def probs(self, logits: Tensor, answer: Sequence[int]) -> Tensor:
        """The distribution the next token is drawn from: float64 ``[vocab]`` on the CPU, sums to 1.

        ``logits`` ``[vocab]`` finite, any device; ``answer`` are the tokens so far.
        """
        sampling = self.sampling
        scores = logits.detach().cpu().double()  # in this order: not every device has float64
        if sampling.repetition_penalty != 1 and answer:
            seen = torch.tensor(sorted(set(answer)))
            old = scores[seen]
            penalty = sampling.repetition_penalty
            scores = scores.index_copy(0, seen, torch.where(old > 0, old / penalty, old * penalty))
        if sampling.temperature == 0:
            return torch.nn.functional.one_hot(scores.argmax(), len(scores)).double()
        probs = torch.softmax((scores - scores.max()) / sampling.temperature, dim=0)
        if 0 < sampling.top_k < len(probs):
            best = probs.topk(sampling.top_k)
            probs = torch.zeros_like(probs).index_copy(0, best.indices, best.values)
            probs /= probs.sum()
        if sampling.top_p < 1:
            probs = _nucleus(probs, sampling.top_p)
        return probs

    def pick(self, probs: Tensor, position: int, purpose: int = TOKEN) -> int:
        """A token drawn from ``probs`` ``[vocab]`` with the noise of that place."""
        if self.sampling.temperature == 0:
            return int(probs.argmax())
        weight = probs.numpy()
        able = np.flatnonzero(weight)
        noise = -np.log(self._uniforms(position, purpose, int(able[-1]) + 1)[able])
        return int(able[np.argmin(noise / weight[able])])

    def uniform(self, position: int, purpose: int) -> float:
        """A number of the open interval (0, 1)."""
        return float(self._uniforms(position, purpose, 1)[0])

    def _uniforms(self, position: int, purpose: int, count: int) -> np.ndarray:
        counter = np.array([0, 0, purpose, self._start + position], dtype=np.uint64)
        raw = Philox(counter=counter, key=self._key).random_raw(count)
        return ((raw >> np.uint64(11)) + 0.5) * 2.0**-53


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """The fewest most likely tokens whose probabilities reach ``top_p``, scaled to sum to 1."""
    for head in (min(_HEAD, len(probs)), len(probs)):
        best = probs.topk(head)
        before = best.values.cumsum(0) - best.values
        keep = before < top_p
        if not bool(keep[-1]) or head == len(probs):
            break
    kept = torch.zeros_like(probs).index_copy(0, best.indices[keep], best.values[keep])
    return kept / kept.sum()
