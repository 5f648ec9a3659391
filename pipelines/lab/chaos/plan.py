"""What happens when, as a function of the seed alone.

``kills`` are worker processes and device processes ended by SIGKILL, and workers frozen by SIGSTOP for
longer than their session (zombies). Joins, leaves and restarts of the broker come on top.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "kill_worker",
    "kill_device",
    "freeze",
    "freeze_all",
    "join",
    "leave",
    "crash_broker",
    "stop_broker",
]
KILLS: tuple[Kind, ...] = ("kill_worker", "kill_device", "freeze", "freeze_all")
BROKER: tuple[Kind, ...] = ("crash_broker", "stop_broker")
_USUAL: tuple[Kind, ...] = ("kill_worker", "kill_device", "freeze")
_WEIGHTS = {"kill_worker": 5, "kill_device": 2, "freeze": 2, "freeze_all": 1}


@dataclass(frozen=True)
class Action:
    """One event. ``after``: seconds since the one before. ``pick``: which worker, 0 to 1 of them."""

    after: float
    kind: Kind
    pick: float


def make_plan(
    seed: int, kills: int, broker_restarts: int, least_s: float, most_s: float
) -> list[Action]:
    """``kills`` violent ends, one join and one leave for every five, and restarts of the broker, in
    random order with ``least_s`` to ``most_s`` seconds between. With three kills or more there is at
    least one of a worker, one of a device and one zombie."""
    rng = random.Random(seed)  # noqa: S311  # nosec B311
    kinds: list[Kind] = list(_USUAL[:kills])
    names, weights = list(KILLS), [_WEIGHTS[name] for name in KILLS]
    kinds += rng.choices(names, weights, k=max(0, kills - len(kinds)))
    kinds += [kind for _ in range(-(-kills // 5)) for kind in ("join", "leave")]
    kinds += [BROKER[n % len(BROKER)] for n in range(broker_restarts)]
    rng.shuffle(kinds)
    return [Action(rng.uniform(least_s, most_s), kind, rng.random()) for kind in kinds]


def make_silences(seed: int, streams: Sequence[str], count: int, expected: float) -> dict[str, int]:
    """After how many segments some of the streams fall silent for good, without saying that they end:
    somewhere in the middle half of the ``expected`` number. At least one stream goes on."""
    rng = random.Random(f"{seed} silences")  # noqa: S311  # nosec B311
    silent = rng.sample(streams, min(count, len(streams) - 1))
    return {name: max(1, round(expected * rng.uniform(0.25, 0.75))) for name in silent}
