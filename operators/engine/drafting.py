"""How an answer of some kind is decoded: its drafters, its draft control, its sampler."""

from __future__ import annotations

from collections.abc import Sequence

from operators.config import OperatorConfig
from operators.decoding.acceptance import DraftControl
from operators.decoding.drafters import (
    CombinedDrafter,
    Drafter,
    NgramDrafter,
    PreviousOutputDrafter,
)
from operators.decoding.generation import Decoding
from operators.decoding.sampling import Sampler, sampler_key
from operators.engine.session import Session


def decoding(
    config: OperatorConfig,
    session: Session,
    task: str,
    prompt: Sequence[int],
    previous: Sequence[int] = (),
) -> Decoding:
    """What the settings ask for; ``previous`` is the last answer of this kind, or empty. To be called
    when the answer becomes due: its place in the stream is part of what seeds its samples."""
    return Decoding(
        control=session.draft_controls.setdefault(task, DraftControl()),
        make_drafters=lambda: drafters(config, session, prompt, previous),
        by_model=config.drafter in ("auto", "draft"),
        sampler=_sampler(config, session, task, prompt),
    )


def drafters(
    config: OperatorConfig, session: Session, prompt: Sequence[int], previous: Sequence[int]
) -> list[Drafter]:
    """The drafters that need no model, best first."""
    kinds = {
        "auto": ("previous", "ngram"),
        "combined": ("previous", "ngram"),
        "previous": ("previous",),
        "ngram": ("ngram",),
    }.get(config.drafter, ())
    made: list[Drafter] = []
    if "previous" in kinds and previous:
        made.append(PreviousOutputDrafter(previous))
    if "ngram" in kinds:
        made.append(NgramDrafter(session.index, prompt, config.branch_tokens))
    return [CombinedDrafter(made)] if config.drafter == "combined" else made


def _sampler(
    config: OperatorConfig, session: Session, task: str, prompt: Sequence[int]
) -> Sampler | None:
    sampling = config.sampling(task)
    if sampling.plain:
        return None
    key = sampler_key(session.stream_id, session.epoch, task, sampling.seed, prompt)
    # Counted in transcript tokens since the stream began: slots and replays do not change it.
    return Sampler(sampling, key, start=session.tokens_total + len(prompt))
