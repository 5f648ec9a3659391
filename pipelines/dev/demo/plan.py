"""What the demo runs: its defaults in one place, and the meetings that come with the package."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from operators.errors import ConfigError
from operators.events import Segment
from pipelines.wire.codec import read_transcript


@dataclass(frozen=True)
class DemoPlan:
    """Everything that can be chosen about a demo run."""

    model: str = "qwen2.5-coder-1.5b"
    streams: int = 3
    segments: int = 60
    """At most this many segments of each meeting."""
    targets: tuple[str, ...] = ("fr",)
    question: str = "Will it have an LCD screen?"
    """Asked in the first meeting after its first summary; the others are asked what is new in them."""
    speed: str = "max"
    window: int = 256
    slack: int = 64
    update_tokens: int = 160
    summary_tokens: int = 96
    partitions: int = 4
    commit_interval_s: float = 0.5
    first_summary_seconds: float = 120.0
    """A later first summary is remarked on; it is no failure on a slower machine."""
    stall_seconds: float = 300.0
    """The run is given up when for so long nothing came out and the model read and wrote no token.
    There is no limit on the whole run: a busy machine makes it slow, not wrong."""

    def __post_init__(self) -> None:
        if self.streams < 1 or self.segments < 1:
            raise ConfigError("STREAMS and SEGMENTS: at least 1")

    def environment(self) -> dict[str, str]:
        """The worker's settings that make this plan, as environment variables."""
        operator = {
            "WINDOW": self.window,
            "SLACK": self.slack,
            "UPDATE_TOKENS": self.update_tokens,
            "SUMMARY_TOKENS": self.summary_tokens,
            "SLOTS": max(self.streams, 1),
            "TARGETS": ",".join(self.targets),
        }
        return {
            "LONGSTREAM_MODEL": self.model,
            "LONGSTREAM_PARTITIONS": str(self.partitions),
            "LONGSTREAM_COMMIT_INTERVAL_S": str(self.commit_interval_s),
            **{f"LONGSTREAM_OPERATOR__{name}": str(value) for name, value in operator.items()},
        }


DEMO = DemoPlan()


def meeting_files() -> list[Path]:
    """The committed meetings: long ones, for measurements."""
    return _files("meetings")


def passage_files() -> list[Path]:
    """Passages of meetings in which something is decided, in the order the demo takes them."""
    return _files("passages")


def _files(name: str) -> list[Path]:
    folder = Path(str(resources.files("pipelines.dev"))) / "data" / name
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise ConfigError(f"no meetings in {folder}: the package is incomplete, install it again")
    return files


def transcripts(plan: DemoPlan, suffix: str = "") -> list[list[Segment]]:
    """One list of segments per stream. More streams than passages repeat them under other ids."""
    files = passage_files()
    found = []
    for number in range(plan.streams):
        copy, place = divmod(number, len(files))
        part = list(read_transcript(files[place]))[: plan.segments]
        found.append(_renamed(part, (f"-{copy + 1}" if copy else "") + suffix))
    return found


def _renamed(segments: list[Segment], suffix: str) -> list[Segment]:
    if not suffix:
        return segments
    return [
        Segment(
            **{
                **{f: getattr(s, f) for f in s.__struct_fields__},
                "stream_id": s.stream_id + suffix,
                "segment_id": f"{s.segment_id}{suffix}",
            }
        )
        for s in segments
    ]


def with_choices(plan: DemoPlan, **choices: object) -> DemoPlan:
    """``plan`` with what the user chose; None means not chosen."""
    given = {name: value for name, value in choices.items() if value is not None}
    return dataclasses.replace(plan, **given)  # type: ignore[arg-type]
