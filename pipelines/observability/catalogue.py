"""What is measured: one line per metric, its labels and its buckets.

The table is the only place where a metric is declared. ``pipelines.observability.metrics`` builds the
Prometheus objects from it, the device's beats are checked against it, and the test of the dashboards
reads the names that result. Seconds for times, tokens for sizes; no stream id is ever a label, because
the number of streams has no bound.

``name`` is written as the engine's observer says it: without the ``longstream_`` prefix and the
``_total`` suffix. ``source`` says which side may write it: ``loop`` (the event loop, through the
methods of ``Metrics``), ``device`` (arriving in beats), or ``both``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

SECONDS_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SECONDS_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
SECONDS_END_TO_END = (
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
TOKENS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)
BYTES = tuple(float(1 << power) for power in range(9, 25))
ERASURE = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Spec:
    """One metric. ``labels`` are its own; ``worker`` and ``model`` are added to all of a worker's."""

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    source: Literal["loop", "device", "both"] = "loop"
    known: tuple[str, ...] = ()
    """Values of its one label that are exported at 0 from the start: of a counter that appears at 5
    Prometheus' ``increase`` sees nothing."""


def _device(
    kind: Kind,
    name: str,
    help: str,
    *labels: str,
    buckets: tuple[float, ...] = (),
    known: tuple[str, ...] = (),
) -> Spec:
    return Spec(kind, name, help, labels, buckets, "device", known)


LOOP_SPECS = (
    Spec(
        "counter",
        "segments_consumed",
        "Segments read from the input topic.",
        ("final",),
        known=("true", "false"),
    ),
    Spec(
        "counter",
        "segment_languages",
        "Segments by the language their producer names; none where it names none.",
        ("language",),
    ),
    Spec("gauge", "threads", "CPU threads the model may use."),
    Spec("counter", "outputs_published", "Events the broker acknowledged.", ("status", "task")),
    Spec("counter", "dead_letters", "Records put on the dead-letter topic.", ("stage", "reason")),
    Spec(
        "counter",
        "input_fields_dropped",
        "Optional fields of input records that could not be used and were left out.",
        ("field",),
    ),
    Spec(
        "counter",
        "input_events_ignored",
        "Input records of recognisers that hold no words.",
        ("adapter",),
    ),
    Spec("counter", "streams_ended_idle", "Streams ended because nothing came for long."),
    Spec("counter", "tenant_limited", "Segments a tenant's limit delayed or refused.", ("limit",)),
    Spec(
        "counter",
        "retries",
        "Attempts repeated after a fault.",
        ("stage",),
        known=("commit", "device"),
    ),
    Spec(
        "counter",
        "duplicate_inputs",
        "Inputs skipped because they were already done.",
        source="both",
    ),
    Spec("counter", "rebalances", "Assignments of partitions received from the group."),
    Spec("counter", "commits", "Commits (transactions or offset commits) that succeeded."),
    Spec("histogram", "commit_seconds", "Time one commit took.", (), SECONDS_SHORT),
    Spec("counter", "device_restarts", "Times the device process was started again."),
    Spec("gauge", "device_up", "1 while the device process runs with its model loaded."),
    Spec(
        "gauge",
        "last_progress_timestamp_seconds",
        "Unix time of the last input finished or work done by the device; 0 before the first.",
    ),
    Spec("gauge", "queue_depth", "Segments read and not finished."),
    Spec("gauge", "queue_limit", "Most segments that may be read and not finished; 0 = standby."),
    Spec("gauge", "event_loop_tasks", "Tasks of the worker's event loop."),
    Spec(
        "gauge",
        "coverage_lag_seconds",
        "Age of the oldest final segment read and not covered by a summary, over all streams.",
    ),
    Spec(
        "gauge",
        "commit_watermark_gap_messages",
        "Messages between the highest offset finished and the offset committed.",
        ("topic", "partition"),
    ),
    Spec(
        "gauge",
        "consumer_lag_messages",
        "Messages between the end of the partition and the offset committed.",
        ("topic", "partition"),
    ),
    Spec(
        "gauge",
        "consumer_lag_seconds",
        "Age of the oldest message of the partition not committed; 0 when there is none.",
        ("topic", "partition"),
    ),
    Spec(
        "histogram",
        "end_to_end_latency_seconds",
        "From the timestamp of an event's newest input to the broker's acknowledgement of the event.",
        ("task",),
        SECONDS_END_TO_END,
    ),
    Spec(
        "histogram",
        "state_bytes",
        "Size of a stream's state as it was written; max_message_bytes is the bound.",
        (),
        BYTES,
    ),
    Spec("counter", "states_shrunk", "States of which parts were left out to fit their topic."),
    Spec("gauge", "states_table_bytes", "Memory of closed streams' states, all partitions."),
    Spec("gauge", "states_table_limit_bytes", "Most of it (states_max_bytes for each partition)."),
    Spec("gauge", "open_streams", "Streams that have records or a state in the worker's memory."),
    Spec(
        "histogram",
        "recovery_seconds",
        "Time from a partition's assignment to its first record; recovery_timeout_s bounds the reading.",
        (),
        SECONDS_LONG,
    ),
    Spec("counter", "unknown_metrics", "Values in device beats that no metric takes."),
)

DEVICE_SPECS = (
    _device(
        "counter",
        "prompt_tokens",
        "Tokens read by the model, not generated by it; the task transcript: the streams' own text.",
        "task",
    ),
    _device("counter", "generation_tokens", "Tokens generated.", "task"),
    _device("counter", "late_revisions", "Corrections of segments that had been taken before."),
    _device("counter", "reused_ids", "Segments whose id had been used for other speech before."),
    _device("counter", "kv_evicted_tokens", "Transcript tokens that left the window."),
    _device(
        "counter",
        "kv_restores",
        "Streams brought back into a slot.",
        "kind",
        known=("snapshot", "replay"),
    ),
    _device(
        "counter", "spec_decode_drafts", "Drafts put before the model for verification.", "task"
    ),
    _device("counter", "spec_decode_draft_tokens", "Draft tokens proposed.", "task"),
    _device("counter", "spec_decode_accepted_tokens", "Draft tokens accepted.", "task", "drafter"),
    _device(
        "counter",
        "spec_decode_accepted_tokens_per_pos",
        "Draft tokens accepted, by place in the draft (0 = first).",
        "position",
    ),
    _device("counter", "edits", "Edits of notes by persons.", "op", "result"),
    _device("counter", "questions_answered", "Questions answered.", "kind", "refused"),
    _device("counter", "failed_runs", "Runs of a task that came to nothing.", "task", "reason"),
    _device(
        "counter",
        "weights_changed",
        "Streams whose memory was made with other weights than this worker's.",
    ),
    _device("counter", "refused_notes", "Notes that an update did not take.", "reason"),
    _device(
        "counter",
        "dropped_settings",
        "Parts of streams' own settings that are unknown or too large and were left out.",
        "field",
    ),
    _device("counter", "server_requests", "Requests to the server that has the model.", "result"),
    _device("gauge", "server_trouble", "1 from a failed request to the next good one.", "reason"),
    _device("counter", "observations_dropped", "Values lost because a beat was full."),
    _device("gauge", "active_streams", "Streams that are open."),
    _device("gauge", "resident_streams", "Streams whose KV cache is in device memory."),
    _device("gauge", "host_streams", "Idle streams whose KV is in host memory."),
    _device("gauge", "stored_streams", "Idle streams whose KV is in the store (offload_url)."),
    _device("gauge", "host_kv_bytes", "Host memory that the KV of idle streams takes."),
    _device("gauge", "host_kv_limit_bytes", "Most of it (operator.host_bytes); 0 = no bound."),
    _device(
        "counter",
        "idle_kv_let_go",
        "Idle streams whose KV was let go for want of host memory; their text is prefilled again.",
    ),
    _device("counter", "kv_store_failures", "Writes and deletions the store for idle KV refused."),
    _device("gauge", "kv_slots", "KV cache slots."),
    _device("gauge", "kv_slots_used", "KV cache slots in use."),
    _device("gauge", "streams_waiting_for_slot", "Streams with work to do and no KV cache slot."),
    _device("gauge", "kv_bytes", "Bytes reserved for KV cache and branch scratch."),
    _device(
        "gauge", "cpu_threads", "Threads computing; fewer than allowed while others hold the cores."
    ),
    _device("histogram", "step_seconds", "One step of the engine.", buckets=SECONDS_SHORT),
    _device("histogram", "batch_tokens", "Tokens of all rows in one forward.", buckets=TOKENS),
    _device("histogram", "prefill_seconds", "One ingest forward.", buckets=SECONDS_SHORT),
    _device(
        "histogram",
        "queue_wait_seconds",
        "From a segment fed to the engine to its first token read.",
        buckets=SECONDS_LONG,
    ),
    _device(
        "histogram",
        "time_to_first_token_seconds",
        "From a branch forked to its first generated token.",
        "task",
        buckets=SECONDS_LONG,
    ),
    _device(
        "histogram",
        "inter_token_latency_seconds",
        "Time per generated token after the first.",
        "task",
        buckets=SECONDS_SHORT,
    ),
    _device(
        "histogram",
        "summary_normalized_erasure",
        "Tokens of the previous summary taken back, as a share of its length.",
        buckets=ERASURE,
    ),
    _device(
        "histogram",
        "translation_latency_seconds",
        "From text taken by the engine to its translation.",
        "policy",
        buckets=SECONDS_LONG,
    ),
    _device(
        "histogram",
        "translation_normalized_erasure",
        "Tokens of the previous translation taken back, as a share of its length.",
        buckets=ERASURE,
    ),
)

GATEWAY_SPECS = (
    Spec("gauge", "gateway_readers", "Readers of server-sent events now."),
    Spec("gauge", "gateway_readers_limit", "Most of them (gateway_max_readers)."),
    Spec(
        "counter",
        "gateway_readers_dropped",
        "Connections cut off because they took nothing for gateway_send_timeout_s (stuck), and "
        "readers told to start anew because the log had moved on (behind).",
        ("reason",),
        known=("stuck", "behind"),
    ),
    Spec(
        "counter",
        "gateway_requests",
        "Requests answered, and sockets opened (method WEBSOCKET, code 101), by status code.",
        ("method", "code"),
    ),
    Spec(
        "histogram",
        "gateway_request_seconds",
        "From a request to its whole answer, without events, sockets and questions, which wait.",
        (),
        SECONDS_SHORT,
    ),
    Spec("counter", "gateway_segments", "Segments, marks and edits written to Kafka."),
    Spec("counter", "gateway_questions", "Questions written to Kafka."),
    Spec("gauge", "gateway_streams", "Streams that the gateway holds."),
    Spec("gauge", "gateway_view_bytes", "Memory they take; gateway_max_mib is the bound."),
    Spec(
        "gauge",
        "gateway_ready",
        "1 while all that Kafka held at the start is read, and it answers.",
    ),
)
WEBHOOK_SPECS = (
    Spec("counter", "webhook_deliveries", "Notes that the target took.", ("hook",)),
    Spec("counter", "webhook_failures", "Attempts that failed, by why.", ("hook", "reason")),
    Spec(
        "counter",
        "webhook_dead_letters",
        "Notes given up and put on the dead-letter topic.",
        ("hook",),
    ),
)

SPECS = LOOP_SPECS + DEVICE_SPECS
FROM_DEVICE = {spec.name: spec for spec in SPECS if spec.source != "loop"}
"""What a beat may carry, by name."""
