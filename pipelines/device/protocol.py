"""Messages between the event loop and the device process (framed msgpack over a socket pair).

A frame is a 4-byte big-endian length followed by one msgpack object. Commands travel to the device,
reports travel back; both are tagged unions, so a frame decodes into exactly one of the classes here
or is refused.
"""

from __future__ import annotations

import msgspec

from operators.events import Question, Segment
from operators.state import Emission, SessionState
from pipelines.observability.telemetry import Beat
from pipelines.served.settings import ServerSettings

MAX_FRAME_BYTES = 64 << 20


# --- to the device ---------------------------------------------------------------------------


class Load(msgspec.Struct, tag="load", kw_only=True):
    """Load the model; answered by :class:`Ready` or :class:`Fatal`. ``config`` is OperatorConfig."""

    model: str
    backend: str = "local"
    server: ServerSettings | None = None
    """Where the model is, for backend openai. With its key: never printed."""
    device: str = "auto"
    config: dict[str, object] = {}
    gguf_dir: str | None = None
    model_sha256: str = ""
    """What a model that is no alias must be; empty: it is refused. The other: the draft model's."""
    draft_model_sha256: str = ""
    snapshot_url: str = ""
    """Where snapshots go (an fsspec URL); empty: none are taken."""
    snapshot_interval_s: float = 60.0
    snapshot_retention_h: float | None = None
    """Older ones are deleted from the store; None keeps them until their stream ends."""
    offload_url: str = ""
    """Where the KV of idle streams goes that host memory has no room for; empty: nowhere."""
    again: bool = False
    """All was found right in this worker's life before: a store that is away is no mistake now."""
    known_weights: tuple[str, ...] = ()
    """``weights`` of streams' states, newest first: with dtype_decode auto the newest that fits the
    model and this machine is taken, so that all workers of a deployment write the same texts."""
    toy: bool = False
    """Tests only: build a tiny random model instead of loading one."""


class Open(msgspec.Struct, tag="open"):
    """Make the stream known. With ``state`` it continues from there (window is re-prefilled)."""

    stream_id: str
    state: SessionState | None = None


class Feed(msgspec.Struct, tag="feed"):
    """One decoded segment of an open stream. ``ticket`` (its offset) comes back in an Emission."""

    ticket: int
    segment: Segment
    read_at: float = 0.0
    """When the worker read it, on this machine's monotonic clock; 0 = just now."""


class Ask(msgspec.Struct, tag="ask"):
    """A question about an open stream. ``ticket`` (its offset) comes back in an Emission."""

    ticket: int
    question: Question


class End(msgspec.Struct, tag="end"):
    """End an open stream that nobody else ends, behind all that was fed. Its state says that it ended;
    no ticket comes back."""

    stream_id: str


class Drop(msgspec.Struct, tag="drop"):
    """Let go of the stream at once (partition revoked); no further emission about it is wanted.

    ``generation`` is echoed in :class:`Dropped`, so that emissions still in flight can be told apart.
    """

    stream_id: str
    generation: int = 0
    erase: bool = False
    """Its snapshots in the store go too, and its KV that any process had put aside; may be asked for
    again."""


class Probe(msgspec.Struct, tag="probe"):
    """Do a harmless segment of a throw-away stream, before any other is open; answered by
    :class:`Probed`."""


class Stop(msgspec.Struct, tag="stop"):
    """Finish nothing, leave in order."""


Command = Load | Open | Feed | Ask | End | Drop | Probe | Stop


# --- from the device -------------------------------------------------------------------------


class Progress(msgspec.Struct, tag="progress"):
    """Loading goes on; ``message`` is for people."""

    message: str


class Ready(msgspec.Struct, tag="ready", kw_only=True):
    model: str
    device: str
    dtype_prefill: str
    dtype_decode: str
    slots: int
    bytes_per_stream: int
    bytes_total: int
    description: str = ""


class Output(msgspec.Struct, tag="output"):
    emission: Emission


class Refused(msgspec.Struct, tag="refused"):
    """The engine would not take this segment; it is not done and will not be: a dead letter."""

    stream_id: str
    ticket: int
    reason: str
    message: str
    question: bool = False
    """It was a question."""


class Dropped(msgspec.Struct, tag="dropped"):
    stream_id: str
    generation: int = 0
    problem: str = ""
    """Why it could not be erased, as was asked for."""


class Probed(msgspec.Struct, tag="probed"):
    """The model can do a segment."""


class Fatal(msgspec.Struct, tag="fatal"):
    """The device cannot go on. ``kind`` is "model", "config" or "device"; the process exits next."""

    kind: str
    message: str


Report = Progress | Ready | Output | Refused | Dropped | Probed | Beat | Fatal
