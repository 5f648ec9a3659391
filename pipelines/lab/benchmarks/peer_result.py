"""What one side took for the job."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Took:
    """Seconds of wall clock; tokens run through the model as a prompt, and tokens generated."""

    seconds: float
    answers: int
    prefilled: int
    generated: int
