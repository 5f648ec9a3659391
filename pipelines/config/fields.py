"""The settings themselves: names, defaults, limits, and what two of them can get wrong together."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import urllib.parse
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from operators.config import OperatorConfig
from pipelines.config.cpu import cpu_limit
from pipelines.config.gateway import GatewaySettings

OPERATOR_FIELDS = tuple(field.name for field in dataclasses.fields(OperatorConfig))
TOPIC_FIELDS = (
    "topic_segments",
    "topic_summaries",
    "topic_summaries_latest",
    "topic_translations",
    "topic_questions",
    "topic_answers",
    "topic_sessions",
    "topic_dlq",
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SERVER = re.compile(r"(\[[0-9A-Fa-f:]+\]|[^\s,:@/\[\]]+):\d{1,5}")


def _threads() -> int:
    """What affinity and the control group's quota leave, at most 16."""
    return cpu_limit().threads


def _operator_input(value: object) -> object:
    """Accept what an environment can say: lists as "fr,de" and prompts as a JSON object."""
    if not isinstance(value, dict):
        return value
    values = dict(value)
    for name in ("targets", "allowed_targets", "redact", "sampled_tasks"):
        if isinstance(listed := values.get(name), str):
            values[name] = tuple(item.strip() for item in listed.split(",") if item.strip())
    if isinstance(prompts := values.get("prompts"), str):
        try:
            values["prompts"] = json.loads(prompts)
        except ValueError:
            raise ValueError("prompts: expected a JSON object of name and text") from None
    return values


class Settings(GatewaySettings, BaseSettings):
    """All settings; :func:`pipelines.config.load.load_settings` builds it from every source.

    The constructor itself looks at its arguments only, so no test is coloured by the environment.
    """

    model_config = SettingsConfigDict(
        env_prefix="LONGSTREAM_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    bootstrap: str = "127.0.0.1:9092"
    """Kafka brokers, "host:port" with commas between several."""
    app_id: str = Field("longstream", pattern=r"^[A-Za-z0-9._-]{1,100}$")
    """Consumer group; with the partition it also names the transactional producers."""
    worker: str = Field(default_factory=socket.gethostname, min_length=1, max_length=100)
    """This worker's name in metrics and logs; default: the host's name."""

    topic_segments: str = "transcripts.segments.v1"
    """Input: transcript segments, keyed by stream."""
    topic_summaries: str = "insights.summaries.v1"
    """Output: every revision of every summary."""
    topic_summaries_latest: str = "insights.summaries.latest.v1"
    """Output, compacted: the latest summary of each stream."""
    topic_translations: str = "insights.translations.v1"
    """Output: translations of segments."""
    topic_questions: str = "insights.questions.v1"
    """Input: questions about streams, keyed by stream."""
    topic_answers: str = "insights.answers.v1"
    """Output: their answers."""
    topic_sessions: str = "insights.sessions.v1"
    """Recovery state, compacted."""
    topic_dlq: str = "insights.dlq.v1"
    """Dead letters: refused records with their reason."""
    input_format: Literal["auto", "json", "text", "registry-json", "avro"] = "auto"
    """What values on the input topic are. auto decides by a schema registry's frame, the content type,
    then the content, and refuses what it cannot name."""
    input_adapter: str = Field("auto", pattern=r"^[a-z0-9-]{1,40}$")
    """Whose events they are (docs/inputs.md has the names). auto: by content type, else detected;
    longstream: our own schema alone."""
    input_schema_registry: str = ""
    """URL of the schema registry that has the Avro schemas."""
    input_schema_registry_username: str | None = None
    """Login name at the schema registry."""
    input_schema_registry_password: SecretStr | None = None
    """Password at the schema registry; better kept in a file."""
    input_schema_registry_password_file: Path | None = None
    """File that holds the password."""
    input_schema_registry_cafile: Path | None = None
    """Certificate authorities (PEM) the registry is checked against; default: the system's."""
    input_schema_file: Path | None = None
    """Avro schema (.avsc) of all records on the input topic, in place of a registry."""
    cloudevents_source: str = Field("", pattern=r"^[!-~]{0,200}$")
    """URI that results name as their source in CloudEvents 1.0 headers (ce_id, ce_type). Empty: no such
    headers."""
    partitions: int = Field(4, ge=1, le=10_000)
    """Partitions of every topic when longstream creates it (all topics need the same number)."""
    replication: int = Field(1, ge=1, le=10)
    """Replicas of every topic when longstream creates it; 3 in production."""

    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    """exactly_once needs a broker with transactions."""
    commit_interval_s: float = Field(1.0, gt=0, le=60)
    """Results count this many seconds after the first of them is ready, with their offsets: the
    commit begins earlier by what commits usually take…"""
    commit_max_events: int = Field(256, ge=1)
    """…or after this many segments, at most half of in_flight_per_partition."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "gzip"
    """How batches of results and states are compressed. Every Kafka client reads gzip without further
    libraries; lz4 and zstd cost a third to a seventh of its processor time."""
    in_flight_per_partition: int = Field(512, ge=1)
    """Segments of one partition under way at once; beyond it the consumer pauses."""
    in_flight_per_key: int = Field(8, ge=1)
    """Segments of one stream under way at once."""
    stream_idle_timeout_s: float = Field(21_600.0, ge=0)
    """A stream of which no record came for so many seconds is ended, with its final summary; what comes
    later begins its next epoch. 0: never."""
    session_timeout_s: float = Field(10.0, ge=6, le=1800)
    """A worker silent for so many seconds loses its partitions (brokers want 6 at least)."""
    broker_patience_s: float = Field(300.0, gt=0)
    """How long a worker waits for Kafka to come back, or to take what it refused, before it ends."""
    recovery_timeout_s: float = Field(120.0, gt=0)
    """Longest time for reading the states of a partition that was taken over."""
    states_max_bytes: int = Field(512 << 20, ge=1 << 20)
    """Memory for the states of the closed streams of one partition, compressed; a worker whose streams
    need more ends and says so."""
    stop_deadline_s: float = Field(30.0, gt=0)
    """Seconds a stopping worker may take to finish what is under way."""
    broker_max_poll_records: int = Field(100, ge=1)
    """Records fetched per poll."""
    stream_buffer_maxsize: int = Field(128, ge=1)
    """Records waiting inside the worker per stream processor."""
    max_message_bytes: int = Field(8 << 20, ge=1024)
    """Largest Kafka message read or written; topics are created with this limit."""

    backend: Literal["local", "openai", "transformers"] = "local"
    """Where the model runs: local (this engine), openai (a server with OpenAI's interface, see
    server_url) or transformers (plain generate: slow, a reference). docs/engines.md."""
    server_url: str = ""
    """Address of the server, https://host or http://host:port; /v1 is added where no path is given."""
    server_model: str = ""
    """The model's name at the server; empty: the only one it has."""
    server_key: SecretStr | None = None
    """The server's API key; better kept in a file."""
    server_key_file: Path | None = None
    """File that holds the key."""
    server_cafile: Path | None = None
    """Certificate authorities (PEM) the server is checked against; default: those of certifi."""
    server_timeout_s: float = Field(120.0, gt=0)
    """Seconds one answer of the server may take."""
    server_attempts: int = Field(6, ge=1, le=100)
    """How often one request is sent before the server counts as away."""
    server_openings: Literal["auto", "continue", "ask"] = "auto"
    """How an answer gets its first words: the server continues a begun one, or is asked for them. auto:
    as known servers do it."""
    server_extra: dict[str, Any] = {}
    """Further fields of every request, such as chat_template_kwargs. JSON in the environment."""

    model: str = Field("qwen2.5-coder-1.5b", min_length=1)
    """Model alias, hub name, folder or GGUF file."""
    model_sha256: str = ""
    """sha256 of a model that is no alias, as `longstream model sha256 NAME` says it. With another, or
    with none, it is not loaded."""
    draft_model_sha256: str = ""
    """The same for operator.draft_model or operator.draft_head."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (untested)."""
    threads: int = Field(default_factory=_threads, ge=1, le=1024)
    """CPU threads of the model at most (fewer while other work holds the cores); default: the CPUs that
    affinity and the container's quota leave, at most 16."""
    device_stall_s: float = Field(120.0, gt=0)
    """The model's process is hung when it works so long without finishing a step."""
    device_restarts: int = Field(8, ge=2)
    """The worker ends after so many restarts of the model's process with nothing done in between."""
    device_attempts: int = Field(3, ge=2)
    """A segment with which the model's process failed so often becomes a dead letter."""
    cache: Path = Path("~/.cache/longstream")
    """Folder for models and the local Kafka."""
    gguf_dir: Path | None = None
    """Folder with GGUF files that stand for a model alias (same bytes, checked)."""
    snapshot_url: str = ""
    """Where streams' memories are kept: a folder, s3://… (needs longstream[s3]), any fsspec URL. Empty:
    no snapshots, a stream that moves is restored from its window's text."""
    snapshot_interval_s: float = Field(60.0, ge=0)
    """Least seconds between two snapshots of a stream; taken when it has caught up."""
    tenant_max_streams: int | None = Field(None, ge=1)
    """Streams one tenant (the segments' field) may have open at once on a worker; segments of one too
    many become dead letters. Empty: no limit."""
    tenant_segments_per_s: float | None = Field(None, gt=0)
    """Segments a second of one tenant on a worker. Empty: no limit."""
    tenant_bytes_per_s: float | None = Field(None, gt=0)
    """Bytes of text a second of one tenant on a worker. Empty: no limit."""
    tenant_burst_s: float = Field(10.0, ge=0, le=3600)
    """Seconds' worth of both that may come at once."""
    tenant_excess: Literal["delay", "dead_letter"] = "delay"
    """What exceeds a rate waits its turn, or becomes a dead letter at once."""
    text_retention_h: float | None = Field(None, gt=0)
    """Hours the topics keep text and results; set by `longstream topics create`. Kafka deletes whole
    files: a record goes within twice this time. Empty: the broker's default, usually a week."""
    dlq_retention_h: float = Field(720.0, gt=0)
    """The same for dead letters."""
    state_retention_h: float | None = Field(None, gt=0)
    """Hours after its end for which a stream's state is kept. Empty: for ever."""
    snapshot_retention_h: float | None = Field(None, gt=0)
    """Hours for which snapshots, and KV under offload_url, are kept; a stream that was silent for longer
    is restored from its window's text. Empty: until the stream ends."""
    offload_url: str = ""
    """Where the KV of streams goes that have no work, beyond operator.host_streams: a folder, s3://…,
    any fsspec URL. Each worker makes a folder of its own there. Empty: host memory holds them all."""
    operator: Annotated[OperatorConfig, BeforeValidator(_operator_input)] = OperatorConfig()
    """Settings of the engine itself."""

    http_host: str = Field("127.0.0.1", min_length=1)
    """Address of /metrics, /live and /ready; 0.0.0.0 opens them to the network."""
    http_port: int = Field(6066, ge=0, le=65535)
    """Port of /metrics, /live and /ready; 0 takes a free one."""
    http_token: SecretStr | None = None
    """/metrics wants this as a bearer token; better kept in a file."""
    http_token_file: Path | None = None
    """File that holds the token."""
    otel: bool = False
    """Spans of records that come with a traceparent, by OpenTelemetry (needs longstream[otel]). Its own
    variables, such as OTEL_EXPORTER_OTLP_ENDPOINT, say where they go."""
    log_format: Literal["plain", "json"] = "plain"
    """Log lines for people or for machines."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How to talk to the brokers."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """How to log in, with security_protocol SASL_…"""
    sasl_username: str | None = None
    """Login name, with security_protocol SASL_…"""
    sasl_password: SecretStr | None = None
    """Password; better kept in a file."""
    sasl_password_file: Path | None = None
    """File that holds the password."""
    ssl_cafile: Path | None = None
    """Certificate authorities (PEM) the brokers are checked against; default: the system's."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @field_validator("bootstrap")
    @classmethod
    def _check_bootstrap(cls, value: str) -> str:
        servers = [server.strip() for server in value.split(",")]
        if not all(_SERVER.fullmatch(server) for server in servers):
            raise ValueError('expected "host:port", several with commas between, no login in it')
        return ",".join(servers)

    @field_validator(*TOPIC_FIELDS)
    @classmethod
    def _check_topic(cls, value: str) -> str:
        if not _TOPIC.fullmatch(value) or value in (".", ".."):
            raise ValueError("a topic name has 1 to 249 of A-Z a-z 0-9 . _ -")
        return value

    @field_validator("snapshot_url", "offload_url")
    @classmethod
    def _check_store_url(cls, value: str) -> str:
        # "container@account" of Azure is a place; a password is what follows a colon before the @.
        login, at, _ = urllib.parse.urlsplit(value).netloc.rpartition("@")
        if at and ":" in login:
            raise ValueError("no login in the URL: the store's own environment variables hold it")
        return value

    @field_validator("input_schema_registry")
    @classmethod
    def _check_registry_url(cls, value: str) -> str:
        parts = urllib.parse.urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("expected http://host or https://host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("no login in the URL: input_schema_registry_username and …_password")
        return value

    @field_validator("model_sha256", "draft_model_sha256")
    @classmethod
    def _check_sha256(cls, value: str) -> str:
        if not _SHA256.fullmatch(value.lower()):
            raise ValueError("expected 64 hexadecimal digits, or nothing")
        return value.lower()

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError("expected auto, cpu, cuda, cuda:N or mps")
        return value

    @field_validator(
        *("cache", "gguf_dir", "http_token_file", "sasl_password_file", "ssl_cafile"),
        *("input_schema_file", "input_schema_registry_cafile"),
        *("input_schema_registry_password_file", "server_key_file", "server_cafile"),
    )
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        return value and value.expanduser()

    @field_validator("security_protocol", "sasl_mechanism", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator(
        *("log_level", "log_format", "delivery", "compression", "input_format", "tenant_excess"),
        mode="before",
    )
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _read_secrets(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A secret's file stands for the secret; it is read here, once."""
        values = dict(values)
        for name in (
            *("sasl_password", "http_token", "input_schema_registry_password"),
            "server_key",
        ):
            path = values.get(f"{name}_file")
            if not path:
                continue
            if values.get(name):
                raise ValueError(f"set {name} or {name}_file, not both")
            try:
                values[name] = Path(path).expanduser().read_text().rstrip("\r\n")
            except (OSError, UnicodeDecodeError, TypeError):
                raise ValueError(f"{name}_file: cannot read {path}") from None
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        """What only two settings together can get wrong."""
        names = [getattr(self, field) for field in TOPIC_FIELDS]
        if len(set(names)) < len(names):
            raise ValueError("two of the topic_… settings name the same topic")
        if self.in_flight_per_key > self.in_flight_per_partition:
            raise ValueError("in_flight_per_key must not exceed in_flight_per_partition")
        if self.in_flight_per_key > self.operator.max_queue:
            raise ValueError("in_flight_per_key must not exceed operator.max_queue")
        if self.operator.max_text_bytes >= self.max_message_bytes:
            raise ValueError("operator.max_text_bytes must be below max_message_bytes")
        if self.device_attempts > self.device_restarts:
            raise ValueError("device_attempts must not exceed device_restarts")
        if self.ssl_cafile is not None and not self.ssl_cafile.is_file():
            raise ValueError(f"ssl_cafile: no such file: {self.ssl_cafile}")
        self._check_login()
        self._check_registry()
        self._check_server()
        return self

    def _check_server(self) -> None:
        if self.backend == "openai" and not self.server_url:
            raise ValueError("backend openai needs server_url")
        if self.backend != "openai" and (self.server_url or self.server_key):
            raise ValueError("server_url and server_key are for backend openai")
        if self.backend == "openai" and self.operator.draft_model:
            raise ValueError("operator.draft_model: a server makes drafts of its own")
        if self.backend != "local" and self.operator.draft_head:
            raise ValueError("operator.draft_head needs backend local")

    def _check_registry(self) -> None:
        if self.input_schema_registry and self.input_schema_file:
            raise ValueError("set input_schema_registry or input_schema_file, not both")
        if self.input_format == "avro" and not (
            self.input_schema_registry or self.input_schema_file
        ):
            raise ValueError(
                "input_format avro needs input_schema_registry or input_schema_file for its schemas"
            )
        for path in (self.input_schema_file, self.input_schema_registry_cafile):
            if path is not None and not path.is_file():
                raise ValueError(f"no such file: {path}")
        login = self.input_schema_registry_username, self.input_schema_registry_password
        if any(login) and not all(login):
            raise ValueError("the schema registry's login needs both a name and a password")
        host = urllib.parse.urlsplit(self.input_schema_registry)
        if any(login) and host.scheme == "http" and host.hostname not in _LOOPBACK:
            raise ValueError("input_schema_registry: a login goes over https only")

    def _check_login(self) -> None:
        uses_sasl = self.security_protocol.startswith("SASL_")
        has_login = bool(self.sasl_username), bool(self.sasl_password)
        if uses_sasl and not all(has_login):
            raise ValueError(
                f"security_protocol {self.security_protocol} needs sasl_username and "
                "sasl_password_file (or sasl_password)"
            )
        if not uses_sasl and any(has_login):
            raise ValueError(
                "a login is set but not used: security_protocol must be SASL_SSL or SASL_PLAINTEXT"
            )

    def operator_config(self) -> OperatorConfig:
        """The engine's own settings."""
        return self.operator

    @property
    def own_snapshot_url(self) -> str:
        """Where this application's snapshots are: a folder of its own under ``snapshot_url``."""
        return f"{self.snapshot_url.rstrip('/')}/app-{self.app_id}" if self.snapshot_url else ""

    @property
    def cautions(self) -> tuple[str, ...]:
        """What is allowed and may be regretted, a sentence each; the worker logs them."""
        by_metric: dict[str, list[str]] = {}
        for name in self.topics:
            by_metric.setdefault(name.replace(".", "_"), []).append(name)
        return tuple(
            f"Kafka's own metrics cannot tell {' and '.join(names)} apart: they differ in . and _ only"
            for names in by_metric.values()
            if len(names) > 1
        )

    @property
    def topics(self) -> tuple[str, ...]:
        """All topic names, the input first."""
        return tuple(getattr(self, field) for field in TOPIC_FIELDS)
