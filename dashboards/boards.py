"""The four boards. A limit here is the same number as in the alert it names (a test compares them)."""

from __future__ import annotations

from dashboards.panels import (
    Board,
    Panel,
    Query,
    Row,
    grown,
    mean,
    quantile,
    quantiles,
    rate,
    ratio,
    series,
    total,
)


def _stat(*args: object, **more: object) -> Panel:
    return Panel(*args, kind="stat", width=3, height=4, **more)  # type: ignore[arg-type]


def _one(expr: str, legend: str = "") -> tuple[Query, ...]:
    return (Query(expr, legend),)


ACCEPTED = rate("spec_decode_accepted_tokens_total")
DRAFTS = rate("spec_decode_drafts_total")
END_TO_END = "end_to_end_latency_seconds"

NOW = Row(
    "Now",
    (
        _stat(
            "Models running",
            "short",
            "Workers whose model is loaded and running.",
            _one(f"{total('device_up')} or vector(0)"),
            bad=1,
            low=True,
            alert=("WorkerDown", "WorkersMissing", "DeviceDown"),
        ),
        _stat(
            "Streams",
            "short",
            "Streams that are open on all chosen workers.",
            _one(total("active_streams")),
        ),
        _stat(
            "Outputs",
            "ops",
            "Events a second that the broker acknowledged.",
            _one(rate("outputs_published_total")),
        ),
        _stat(
            "End to end, p95",
            "s",
            "From the timestamp of an event's newest input to the broker's acknowledgement.",
            _one(quantile(0.95, END_TO_END)),
            warn=30,
            bad=60,
            alert=("EndToEndLatencyHigh",),
        ),
        _stat(
            "Coverage lag",
            "s",
            "Age of the oldest final segment that no summary covers.",
            _one(total("coverage_lag_seconds", how="max")),
            warn=450,
            bad=900,
            alert=("CoverageStale",),
        ),
        _stat(
            "Consumer lag",
            "s",
            "Age of the oldest message that is not committed, over all partitions.",
            _one(total("consumer_lag_seconds", how="max")),
            warn=60,
            bad=300,
            alert=("LagGrowing", "StuckCommit"),
        ),
        _stat(
            "Dead letters, 1 h",
            "short",
            "Records given up in the last hour. Each lies on the dead-letter topic with its reason.",
            _one(f"{grown('dead_letters_total', '1h')} or vector(0)"),
            bad=1,
            alert=("DeadLetters",),
        ),
        _stat(
            "Alerts firing",
            "short",
            "Rules of dashboards/prometheus/alerts.yml that fire now, over all workers.",
            _one('count(ALERTS{service="longstream",alertstate="firing"}) or vector(0)'),
            bad=1,
        ),
    ),
)

FLOW = Row(
    "Flow",
    (
        Panel(
            "Segments in",
            "ops",
            "Records read from the input topic, and those skipped because they were done before.",
            (
                Query(rate("segments_consumed_total", "final"), "final={{final}}"),
                Query(rate("duplicate_inputs_total"), "skipped as done"),
            ),
        ),
        Panel(
            "Outputs by task",
            "ops",
            "Events the broker acknowledged. A partial is replaced later, a final stays.",
            _one(rate("outputs_published_total", "task, status"), "{{task}} {{status}}"),
        ),
        Panel(
            "Streams",
            "short",
            "Open streams, and where their KV cache is kept.",
            (
                Query(total("active_streams"), "open"),
                Query(total("resident_streams"), "in device memory"),
                Query(total("host_streams"), "in host memory"),
                Query(total("stored_streams"), "in the store"),
            ),
        ),
        Panel(
            "End-to-end latency",
            "s",
            "From the timestamp of an event's newest input to the broker's acknowledgement of the "
            "event; every event counts.",
            quantiles(END_TO_END, 0.5, 0.95, 0.99),
            bad=60,
            alert=("EndToEndLatencyHigh",),
        ),
        Panel(
            "End-to-end latency by task, p95",
            "s",
            "The same by what was made.",
            _one(quantile(0.95, END_TO_END, "task"), "{{task}}"),
            bad=60,
            alert=("EndToEndLatencyHigh",),
        ),
        Panel(
            "Coverage lag",
            "s",
            "Age of the oldest final segment that was read and is in no summary yet.",
            _one(total("coverage_lag_seconds", "worker", "max"), "{{worker}}"),
            bad=900,
            alert=("CoverageStale",),
        ),
        Panel(
            "Tokens",
            "ops",
            "Tokens the model reads (transcript and prompts) and generates, a second.",
            (
                Query(rate("prompt_tokens_total"), "read"),
                Query(rate("generation_tokens_total"), "generated"),
            ),
        ),
        Panel(
            "Consumer lag",
            "s",
            "Age of the oldest message that is not committed, the worst partition of each worker.",
            _one(total("consumer_lag_seconds", "worker", "max"), "{{worker}}"),
            bad=300,
            alert=("LagGrowing", "StuckCommit"),
        ),
        Panel(
            "Faults",
            "short",
            "In the last 10 minutes: records given up, attempts repeated, model processes started "
            "again.",
            (
                Query(f"{grown('dead_letters_total', '10m')} or vector(0)", "dead letters"),
                Query(f"{grown('retries_total', '10m')} or vector(0)", "retries"),
                Query(grown("device_restarts_total", "10m"), "model restarts"),
            ),
            bad=1,
            alert=("DeadLetters", "DeviceDown"),
        ),
    ),
)

OVERVIEW = Board(
    "overview",
    "longstream: overview",
    "Is it running, does it keep up, how late are the results, was anything given up.",
    (NOW, FLOW),
)

CACHE = Row(
    "KV cache",
    (
        Panel(
            "KV slots",
            "short",
            "Slots in use and slots there are. All in use is normal: an idle stream gives its slot up.",
            (Query(total("kv_slots_used"), "in use"), Query(total("kv_slots"), "there are")),
        ),
        Panel(
            "Streams waiting for a slot",
            "short",
            "Streams with work to do whose KV has no place in device memory, by worker.",
            _one(total("streams_waiting_for_slot", "worker"), "{{worker}}"),
            bad=1,
            alert=("SlotsContended",),
        ),
        Panel(
            "Where the streams' KV is",
            "short",
            "A stream without work moves to host memory when others need its slot, and from there to "
            "the store.",
            (
                Query(total("resident_streams"), "device memory"),
                Query(total("host_streams"), "host memory"),
                Query(total("stored_streams"), "store"),
            ),
            stacked=True,
        ),
        Panel(
            "KV memory",
            "bytes",
            "Bytes reserved for the KV cache and for answers in the making. Constant by design.",
            _one(total("kv_bytes", "worker"), "{{worker}}"),
        ),
        Panel(
            "Evicted tokens",
            "ops",
            "Transcript tokens a second that leave the window because newer ones come.",
            _one(rate("kv_evicted_tokens_total", "worker"), "{{worker}}"),
        ),
        Panel(
            "Streams restored, 10 min",
            "short",
            "Streams brought back in the last 10 minutes: exactly from a snapshot, or by running the "
            "window's text again (replay).",
            (
                Query(grown("kv_restores_total", "10m", "kind"), "{{kind}}"),
                Query(grown("kv_store_failures_total", "10m"), "store failures"),
            ),
            alert=("RestoreStorm",),
        ),
    ),
)

TIMES = Row(
    "Where the time goes",
    (
        Panel(
            "Wait before the first token is read",
            "s",
            "From a segment fed to the engine to its first token read.",
            quantiles("queue_wait_seconds", 0.5, 0.95),
            warn=10,
        ),
        Panel(
            "Time to first token, p95",
            "s",
            "From an answer begun (its branch forked) to its first token.",
            _one(quantile(0.95, "time_to_first_token_seconds", "task"), "p95 {{task}}"),
            warn=10,
        ),
        Panel(
            "Time per token",
            "s",
            "Time per generated token after the first.",
            quantiles("inter_token_latency_seconds", 0.5, 0.95, 0.99),
        ),
        Panel(
            "Engine step",
            "s",
            "One step of the engine: at most one forward for reading and one for generating.",
            quantiles("step_seconds", 0.5, 0.95),
            warn=1,
        ),
        Panel(
            "Prefill forward",
            "s",
            "One forward that reads transcript or prompt tokens.",
            quantiles("prefill_seconds", 0.5, 0.95),
            warn=1,
        ),
        Panel(
            "Batch",
            "short",
            "Tokens of all rows in one forward: how well the streams share it.",
            (
                Query(mean("batch_tokens"), "mean"),
                Query(quantile(0.95, "batch_tokens"), "p95"),
            ),
        ),
        Panel(
            "Tokens",
            "ops",
            "Tokens read and generated, a second, by worker.",
            (
                Query(rate("prompt_tokens_total", "worker"), "{{worker}} read"),
                Query(rate("generation_tokens_total", "worker"), "{{worker}} generated"),
            ),
        ),
        Panel(
            "Tokens by task",
            "ops",
            "Tokens read and generated, a second, by what they were for; transcript is the streams' "
            "own text.",
            (
                Query(rate("prompt_tokens_total", "task"), "{{task}} read"),
                Query(rate("generation_tokens_total", "task"), "{{task}} generated"),
            ),
        ),
        Panel(
            "Model process",
            "short",
            "1 while the model's process runs; restarts in the last 10 minutes; measurements lost.",
            (
                Query(total("device_up", "worker"), "{{worker}} up"),
                Query(grown("device_restarts_total", "10m"), "restarts"),
                Query(grown("observations_dropped_total", "10m"), "measurements lost"),
            ),
            alert=("DeviceDown",),
        ),
    ),
)

SPECULATION = Row(
    "Speculative decoding",
    (
        Panel(
            "Acceptance rate",
            "percentunit",
            "Accepted draft tokens as a share of those proposed.",
            _one(ratio(ACCEPTED, rate("spec_decode_draft_tokens_total")), "accepted / drafted"),
            bad=0.3,
            low=True,
            maximum=1,
            alert=("AcceptanceCollapse",),
            width=6,
        ),
        Panel(
            "Mean accepted length",
            "short",
            "Tokens one verification yields: 1 + accepted / drafts. 1 means that drafting gains "
            "nothing.",
            _one(f"1 + {ratio(ACCEPTED, DRAFTS)}", "tokens per verification"),
            warn=1.1,
            low=True,
            width=6,
        ),
        Panel(
            "Accepted tokens by drafter",
            "ops",
            "Where the accepted draft tokens come from.",
            _one(rate("spec_decode_accepted_tokens_total", "drafter"), "{{drafter}}"),
            stacked=True,
            width=6,
        ),
        Panel(
            "Acceptance by position",
            "percentunit",
            "Share of drafts whose token at this position was accepted (0 = the first).",
            _one(
                "sum by (position) (increase("
                f"{series('spec_decode_accepted_tokens_per_pos_total')}[10m])) / on () group_left () "
                f"({grown('spec_decode_drafts_total', '10m')} > 0)",
                "{{position}}",
            ),
            kind="bargauge",
            maximum=1,
            width=6,
        ),
    ),
)

INFERENCE = Board(
    "inference",
    "longstream: inference",
    "The model and its KV cache: memory, times, batches, speculation.",
    (CACHE, TIMES, SPECULATION),
)


def _partitions(name: str) -> tuple[Query, ...]:
    expr = f"max by (topic, partition) ({series(name, partition=True)})"
    return _one(expr, "{{topic}}[{{partition}}]")


KAFKA = Board(
    "kafka",
    "longstream: Kafka",
    "Lag, commits and rebalances, partition by partition.",
    (
        Row(
            "Lag",
            (
                Panel(
                    "Lag per partition",
                    "short",
                    "Messages between the end of the partition and the offset committed.",
                    _partitions("consumer_lag_messages"),
                    warn=20,
                    alert=("LagGrowing",),
                ),
                Panel(
                    "Lag per partition, in time",
                    "s",
                    "Age of the oldest message that is not committed; 0 when there is none.",
                    _partitions("consumer_lag_seconds"),
                    bad=300,
                    alert=("LagGrowing", "StuckCommit"),
                ),
                Panel(
                    "Finished and not committed",
                    "short",
                    "Messages between the highest offset finished and the one committed: what one "
                    "slow segment holds back.",
                    _partitions("commit_watermark_gap_messages"),
                    alert=("StuckCommit",),
                ),
                Panel(
                    "Queue",
                    "percentunit",
                    "Segments read and not finished, as a share of the most there may be; at 1 the "
                    "partitions are not read further.",
                    _one(
                        ratio(total("queue_depth", "worker"), total("queue_limit", "worker")),
                        "{{worker}}",
                    ),
                    bad=0.9,
                    maximum=1,
                    alert=("QueueDeep",),
                ),
                Panel(
                    "In and out",
                    "ops",
                    "Segments read and events published, a second. One segment makes no, one or many "
                    "events.",
                    (
                        Query(rate("segments_consumed_total"), "segments in"),
                        Query(rate("outputs_published_total"), "events out"),
                    ),
                ),
                Panel(
                    "Partitions by worker",
                    "short",
                    "Partitions each worker owns and reports. None: a standby.",
                    _one(
                        f"count by (worker) ({series('consumer_lag_messages', partition=True)})",
                        "{{worker}}",
                    ),
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Commits and faults",
            (
                Panel(
                    "Commits",
                    "ops",
                    "Commits (transactions or offset commits) a second, by worker.",
                    _one(rate("commits_total", "worker"), "{{worker}}"),
                    alert=("StuckCommit",),
                ),
                Panel(
                    "Commit time",
                    "s",
                    "How long a commit takes.",
                    quantiles("commit_seconds", 0.5, 0.95),
                    warn=1,
                ),
                Panel(
                    "Rebalances, 10 min",
                    "short",
                    "Assignments of partitions in the last 10 minutes, by worker. More than a few "
                    "without a start or stop of a worker: one is too slow to keep its membership.",
                    _one(grown("rebalances_total", "10m", "worker"), "{{worker}}"),
                    warn=6,
                ),
                Panel(
                    "Retries, 10 min",
                    "short",
                    "Attempts repeated after a fault, by stage.",
                    _one(grown("retries_total", "10m", "stage"), "{{stage}}"),
                    warn=10,
                ),
                Panel(
                    "Skipped and held back",
                    "ops",
                    "Inputs skipped because they were done before, and segments a tenant's limit "
                    "delayed or refused.",
                    (
                        Query(rate("duplicate_inputs_total"), "done before"),
                        Query(rate("tenant_limited_total", "limit"), "tenant limit {{limit}}"),
                    ),
                ),
                Panel(
                    "Event loop tasks",
                    "short",
                    "Tasks of each worker's event loop. It grows with partitions, not with time.",
                    _one(total("event_loop_tasks", "worker"), "{{worker}}"),
                ),
            ),
        ),
        Row(
            "States",
            (
                Panel(
                    "Size of a state",
                    "bytes",
                    "One stream's state as it was written: half and 95 % are smaller. The topic's "
                    "limit is max_message_bytes.",
                    quantiles("state_bytes", 0.5, 0.95),
                    warn=512 << 10,
                ),
                Panel(
                    "State bytes written",
                    "Bps",
                    "Bytes of states a second, before compression, by worker.",
                    _one(rate("state_bytes_sum", "worker"), "{{worker}}"),
                ),
                Panel(
                    "States in memory",
                    "percentunit",
                    "Memory of closed streams' states, as a share of what they may take.",
                    _one(
                        ratio(
                            total("states_table_bytes", "worker"),
                            total("states_table_limit_bytes", "worker"),
                        ),
                        "{{worker}}",
                    ),
                    warn=0.9,
                    maximum=1,
                ),
            ),
        ),
    ),
    variables=("worker", "model", "partition"),
)

QUALITY = Board(
    "quality",
    "longstream: quality",
    "How steady the text is that readers see, how much of it there is, and what was refused.",
    (
        Row(
            "Stability",
            (
                Panel(
                    "Erasure, mean",
                    "percentunit",
                    "Tokens of the previous text taken back by a new one, as a share of its length.",
                    (
                        Query(mean("summary_normalized_erasure"), "summaries"),
                        Query(mean("translation_normalized_erasure"), "translations"),
                    ),
                    bad=0.5,
                    alert=("FlickerHigh",),
                ),
                Panel(
                    "Erasure of summaries",
                    "percentunit",
                    "Half and 95 % of the updates take back less than this.",
                    quantiles("summary_normalized_erasure", 0.5, 0.95),
                    bad=0.5,
                    alert=("FlickerHigh",),
                ),
                Panel(
                    "Erasure of translations",
                    "percentunit",
                    "Half and 95 % of the revisions take back less than this.",
                    quantiles("translation_normalized_erasure", 0.5, 0.95),
                    bad=0.5,
                    alert=("FlickerHigh",),
                ),
            ),
        ),
        Row(
            "Amount",
            (
                Panel(
                    "Revisions per minute and stream",
                    "short",
                    "Events published per minute, by task, divided by the open streams.",
                    _one(
                        f"60 * {rate('outputs_published_total', 'task')} / on () group_left () "
                        f"({total('active_streams')} > 0)",
                        "{{task}}",
                    ),
                ),
                Panel(
                    "Generated tokens per event",
                    "short",
                    "How long the texts are: generated tokens over events published.",
                    _one(
                        ratio(rate("generation_tokens_total"), rate("outputs_published_total")),
                        "tokens",
                    ),
                ),
                Panel(
                    "Corrections that came late",
                    "ops",
                    "Corrections a second of segments that had been read before; they are kept as "
                    "evidence and change no memory.",
                    _one(rate("late_revisions_total"), "late corrections"),
                ),
                Panel(
                    "Translations by policy",
                    "ops",
                    "Translations a second, by the policy that let them out.",
                    _one(rate("translation_latency_seconds_count", "policy"), "{{policy}}"),
                    stacked=True,
                    width=12,
                ),
                Panel(
                    "Translation delay, p95",
                    "s",
                    "From text taken by the engine to its translation, by policy.",
                    _one(quantile(0.95, "translation_latency_seconds", "policy"), "{{policy}}"),
                    warn=30,
                    width=12,
                ),
            ),
        ),
        Row(
            "Refused",
            (
                Panel(
                    "Dead letters by reason, 1 h",
                    "short",
                    "Records given up in the last hour, by stage and reason.",
                    _one(
                        grown("dead_letters_total", "1h", "stage, reason"), "{{stage}} {{reason}}"
                    ),
                    bad=1,
                    alert=("DeadLetters",),
                    width=12,
                ),
                Panel(
                    "Dead letters as a share of input",
                    "percentunit",
                    "Records given up, as a share of those read.",
                    _one(
                        ratio(
                            f"({grown('dead_letters_total', '10m')} or vector(0))",
                            f"({grown('segments_consumed_total', '10m')} + "
                            f"({grown('dead_letters_total', '10m')} or vector(0)))",
                        ),
                        "refused / read",
                    ),
                    warn=0.01,
                    maximum=1,
                    alert=("DeadLetters",),
                    width=12,
                ),
                Panel(
                    "Notes refused, 1 h",
                    "short",
                    "Notes of the model that an update did not take, by reason.",
                    _one(grown("refused_notes_total", "1h", "reason"), "{{reason}}"),
                    width=12,
                ),
                Panel(
                    "Runs that came to nothing, 1 h",
                    "short",
                    "Updates, translations and answers without a usable result, by task and reason. "
                    "What was there before stays.",
                    _one(grown("failed_runs_total", "1h", "task, reason"), "{{task}} {{reason}}"),
                    warn=10,
                    width=12,
                ),
            ),
        ),
    ),
)

BOARDS = (OVERVIEW, INFERENCE, KAFKA, QUALITY)
