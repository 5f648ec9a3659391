"""Which drafter and draft length an answer of some kind gets."""

from __future__ import annotations

from operators.config import OperatorConfig
from operators.drafting import (
    CombinedDrafter,
    Drafter,
    DraftLength,
    NgramDrafter,
    PreviousOutputDrafter,
)
from operators.session import Session


def draft_length(config: OperatorConfig, session: Session, task: str) -> DraftLength:
    """The stream's own k controller for this kind of answer."""
    maximum = 0 if config.drafter == "none" else config.max_draft
    return session.draft_lengths.setdefault(task, DraftLength(maximum))


def make_drafter(
    config: OperatorConfig, session: Session, prompt: list[int], previous: list[int]
) -> Drafter | None:
    """The drafter the settings ask for; ``previous`` is the last answer of this kind, or empty."""
    ngram = NgramDrafter(session.index, prompt, config.branch_tokens)
    if config.drafter == "none":
        return None
    if config.drafter == "ngram" or not previous:
        return ngram if config.drafter != "previous" else None
    if config.drafter == "previous":
        return PreviousOutputDrafter(previous)
    return CombinedDrafter([PreviousOutputDrafter(previous), ngram])
