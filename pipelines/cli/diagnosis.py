"""What can keep a worker from running here, looked at before one is started. One function per subject;
each yields findings and raises nothing for what it finds. Used by ``longstream doctor``."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.metadata
import platform
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from operators.errors import LongstreamError, ModelError
from pipelines.config.cpu import cpu_limit
from pipelines.config.fields import Settings

Status = Literal["ok", "warning", "error"]
CLOCK_SKEW_S = 5.0
TOPIC_NEEDS = {
    "read": ("READ", "DESCRIBE"),
    "write": ("WRITE", "DESCRIBE"),
    "both": ("READ", "WRITE", "DESCRIBE"),
}
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
START = "longstream kafka, or export LONGSTREAM_BOOTSTRAP=host:port"
STA_UNSYNC, TIME_ERROR = 0x0040, 5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``mend``: the command or setting that puts it right."""

    check: str
    status: Status
    detail: str
    mend: str = ""


def diagnose(settings: Settings, *, kafka: bool = True) -> Iterator[Finding]:
    """Everything, in the order in which a start would meet it."""
    yield from python()
    yield from torch_and_device(settings)
    yield from threads(settings)
    yield from model(settings)
    yield from memory(settings)
    yield from disk(settings)
    yield from clock()
    if kafka:
        yield from broker(settings)


# --- this machine ----------------------------------------------------------------------------


def python() -> Iterator[Finding]:
    here = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield Finding("python", "ok", f"Python {here}")
    else:
        yield Finding("python", "error", f"Python {here}; 3.11 to 3.13 is needed", "make setup")


def torch_and_device(settings: Settings) -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", "error", f"torch does not load: {error}", "pip install longstream")
        return
    if (problem := _outside_pins("torch")) is not None:
        yield Finding("torch", "error", problem, "pip install --upgrade longstream")
    else:
        yield Finding("torch", "ok", f"torch {torch.__version__}")
    there = torch.cuda.is_available()
    if settings.device.startswith("cuda") and not there:
        yield Finding(
            "device",
            "error",
            f"device={settings.device}, but torch sees no CUDA device",
            "export LONGSTREAM_DEVICE=cpu, or install a CUDA build of torch and NVIDIA's driver",
        )
        return
    if settings.device == "cpu" or not there:
        yield Finding("device", "ok", "cpu")
        yield from _instructions(torch.backends.cpu.get_cpu_capability())
        return
    index = int(settings.device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        yield Finding(
            "device",
            "error",
            f"device={settings.device}, but there are {torch.cuda.device_count()} devices",
            "export LONGSTREAM_DEVICE=cuda:0",
        )
        return
    yield Finding("device", "ok", torch.cuda.get_device_name(index))


def _outside_pins(package: str) -> str | None:
    """A sentence when the installed version is not one this release was made for."""
    from packaging.requirements import Requirement

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires("longstream") or ():
            wanted = Requirement(line)
            if wanted.name == package and wanted.marker is None:
                version = importlib.metadata.version(package).partition("+")[0]
                if not wanted.specifier.contains(version, prereleases=True):
                    return f"{package} {version} is installed, {wanted.specifier} is needed"
    return None


def _instructions(capability: str) -> Iterator[Finding]:
    if platform.machine() not in ("x86_64", "AMD64"):
        yield Finding("instructions", "ok", f"{platform.machine()}, torch uses {capability}")
        return
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                flags = set(line.split())
                break
    has = ", ".join(flag for flag in CPU_FLAGS if flag in flags) or "none of " + ", ".join(
        CPU_FLAGS
    )
    if capability in ("DEFAULT", "NO AVX"):
        yield Finding(
            "instructions",
            "warning",
            f"no AVX2 in use (processor has {has}): many times slower",
            "unset ATEN_CPU_CAPABILITY, or use a processor from after 2014",
        )
    else:
        yield Finding("instructions", "ok", f"torch uses {capability}; processor has {has}")
        yield from _compiled(flags)


def _compiled(flags: set[str]) -> Iterator[Finding]:
    """Whether weights w8a8 have their functions in C; silent where no worker takes such weights."""
    from operators.model.rows import is_compiled

    if is_compiled():
        yield Finding("compiled", "ok", "functions for weights w8a8 are compiled")
    elif flags & {"avx512_vnni", "avx_vnni"}:
        yield Finding(
            "compiled",
            "warning",
            "longstream was installed without GCC 11 or newer: weights w8a8 give the same texts, slower",
            "apt-get install gcc libc6-dev && pip install --no-cache-dir --force-reinstall --no-deps"
            " longstream",
        )


def threads(settings: Settings) -> Iterator[Finding]:
    quota = cpu_limit().quota
    if quota is not None and settings.threads > max(1.0, quota):
        yield Finding(
            "cpu quota",
            "warning",
            f"threads={settings.threads}, but the container may use {quota:g} cores: its threads are"
            " stopped many times a second",
            f"export LONGSTREAM_THREADS={max(1, int(quota))}",
        )
    else:
        limit = "no limit" if quota is None else f"limit of {quota:g} cores"
        yield Finding("cpu quota", "ok", f"{settings.threads} threads, {limit}")


def model(settings: Settings) -> Iterator[Finding]:
    from pipelines import models

    for name, pin in (
        (settings.model, settings.model_sha256),
        (settings.operator.draft_model, settings.draft_model_sha256),
    ):
        if not name:
            continue
        try:
            here = models.cached(name, settings.cache)
        except LongstreamError as error:
            yield Finding("model", "error", str(error), "longstream model list")
            continue
        if here is None:
            status: Status = "warning" if name in models.ALIASES else "error"
            detail = f"{name} is not here; a worker fetches it on its first start"
            yield Finding("model", status, detail, f"longstream model pull {name}")
        elif name not in models.ALIASES and not pin:
            setting = "MODEL" if name == settings.model else "DRAFT_MODEL"
            yield Finding(
                "model",
                "error",
                f"{name} is pinned by no digest, so no worker loads it",
                f"export LONGSTREAM_{setting}_SHA256=$(longstream model sha256 {name})",
            )
        else:
            yield Finding("model", "ok", f"{name} in {here}")


def memory(settings: Settings) -> Iterator[Finding]:
    """The cache formula against what there is; silent about a model that is not here."""
    from pipelines import models
    from pipelines.device import memory as arithmetic

    config, sizes = settings.operator, []
    for name in filter(None, (settings.model, config.draft_model)):
        try:
            here = models.cached(name, settings.cache)
            if here is None:
                return
            sizes.append(arithmetic.size_of_folder(here, config))
        except ModelError as error:
            yield Finding("memory", "error", str(error), f"longstream model pull {name}")
            return
    device = _device_of(settings)
    there = arithmetic.memory_of(device)
    need = arithmetic.footprint(config, *sizes, device=device)
    try:
        caution = arithmetic.admit(need, there)
    except LongstreamError as error:
        fit = max(1, need.slots_in(there.total))
        yield Finding("memory", "error", str(error), f"export LONGSTREAM_OPERATOR__SLOTS={fit}")
        return
    if caution is not None:
        fit = min(config.host_streams, need.idle_in(there.total))
        mend = f"export LONGSTREAM_OPERATOR__HOST_STREAMS={fit}"
        yield Finding("memory", "warning", caution, mend)
        return
    yield Finding(
        "memory",
        "ok",
        f"{need.total / 1e9:.1f} GB at most ({config.slots} slots of {need.slot / 1e6:.1f} MB,"
        f" {config.host_streams} idle streams, weights {need.weights / 1e9:.1f} GB);"
        f" {there.source} has {there.total / 1e9:.1f} GB",
    )


def _device_of(settings: Settings) -> str:
    import torch

    if settings.device != "auto":
        return settings.device if torch.cuda.is_available() else "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def disk(settings: Settings) -> Iterator[Finding]:
    from pipelines import models

    alias = models.ALIASES.get(settings.model)
    need = 100_000_000
    if alias is not None and models.cached(settings.model, settings.cache) is None:
        need += alias.converted_size + alias.size + alias.download_size
    yield _room("disk", settings.cache, need, "LONGSTREAM_CACHE")
    for name in ("snapshot_url", "offload_url"):
        url = getattr(settings, name)
        if url and "://" not in url:
            yield _room("disk", Path(url), 1_000_000_000, f"LONGSTREAM_{name.upper()}")


def _room(check: str, folder: Path, need: int, variable: str) -> Finding:
    there = folder.expanduser()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(check, "error", f"{folder}: {error}", f"export {variable}=/another/folder")
    detail = f"{folder}: {free / 1e9:.1f} GB free, {need / 1e9:.1f} GB wanted"
    if free < need:
        return Finding(check, "error", detail, f"free some, or export {variable}=/another/folder")
    return Finding(check, "ok", detail)


def clock() -> Iterator[Finding]:
    """Latencies and lag in seconds compare this clock with the producers'."""
    if (synchronised := _kernel_clock()) is None:
        yield Finding("clock", "ok", "the system does not say whether its clock is synchronised")
    elif synchronised:
        yield Finding("clock", "ok", "synchronised, says the kernel")
    else:
        yield Finding(
            "clock",
            "warning",
            "the kernel says that nobody synchronises this clock: lag and latencies may be wrong",
            "timedatectl set-ntp true",
        )


def _kernel_clock() -> bool | None:
    """Linux: adjtimex(2) with nothing to set; its status says whether a time service steers it."""
    if sys.platform != "linux":
        return None
    buffer = (ctypes.c_int * 64)()  # struct timex is at most 208 bytes; modes = 0, so only reading
    state = ctypes.CDLL(None).adjtimex(buffer)
    if state < 0:
        return None
    status = buffer[10] if ctypes.sizeof(ctypes.c_long) == 8 else buffer[5]
    return state != TIME_ERROR and not status & STA_UNSYNC


# --- Kafka -----------------------------------------------------------------------------------


def broker(settings: Settings) -> Iterator[Finding]:
    """Reach it, then what it says about topics, rights, limits and time. Creates and writes nothing."""
    from pipelines.kafka.tools import KafkaError, connection
    from pipelines.kafka.topics import admin_client

    if (refusal := _refusal(settings)) is not None:
        yield refusal
        return
    try:
        client = admin_client(settings.bootstrap, 10.0, connection(settings, "longstream-doctor"))
    except (KafkaError, OSError, LongstreamError) as error:
        yield Finding("kafka", "error", f"{settings.bootstrap}: {type(error).__name__}", START)
        return
    with client as admin:
        yield Finding("kafka", "ok", f"answers at {settings.bootstrap}")
        try:
            found = {t["name"]: t for t in admin.describe_topics(list(settings.topics))}
            yield from _topics(settings, found)
            yield from _rights(settings, found)
            yield from _limits(settings, admin, found)
        except (KafkaError, OSError) as error:
            yield Finding("kafka", "error", f"{type(error).__name__}: {error}", "check the ACLs")
            return
    yield from _producers_clock(settings, found)


def _refusal(settings: Settings) -> Finding | None:
    """Whether nobody listens, or the broker will not have us: asked with bare connections, whose errors
    say more than a client's."""
    from pipelines.kafka.clients import turned_away

    if not any(_listens(server) for server in settings.bootstrap.split(",")):
        return Finding("kafka", "error", f"nothing listens at {settings.bootstrap}", START)
    try:
        refusal: LongstreamError | None = asyncio.run(turned_away(settings))
    except LongstreamError as error:
        refusal = error
    if refusal is None:
        return None
    return Finding("kafka", "error", str(refusal), "correct the settings named there")


def _listens(server: str) -> bool:
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3.0).close()
    except OSError:
        return False
    return True


def _partitions(topic: dict[str, Any] | None) -> int:
    return len(topic["partitions"]) if topic and not topic["error_code"] else 0


def _topics(settings: Settings, found: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    from pipelines.kafka.topic_check import ACCESS_DENIED

    counts = {name: _partitions(found.get(name)) for name in settings.topics}
    denied = [name for name, t in found.items() if t["error_code"] == ACCESS_DENIED]
    if denied:
        detail = f"the broker refuses to describe {', '.join(denied)}"
        yield Finding("topics", "error", detail, _acl(settings, denied[0], "DESCRIBE"))
    if missing := [name for name, n in counts.items() if not n and name not in denied]:
        detail = f"missing: {', '.join(missing)}"
        yield Finding("topics", "error", detail, "longstream topics create")
    if len(different := {n for n in counts.values() if n}) > 1:
        said = ", ".join(f"{name} has {n}" for name, n in counts.items() if n)
        mend = f"make them anew with {max(different)} partitions: longstream topics create"
        yield Finding("topics", "error", f"different numbers of partitions: {said}", mend)
    elif not missing and not denied:
        yield Finding("topics", "ok", f"{len(counts)} topics of {max(different)} partitions")


def _rights(settings: Settings, found: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """What the broker says this login may do. Rights on the group show at the first join only."""
    lacking = []
    for name in settings.topics:
        allowed = found.get(name, {}).get("authorized_operations")
        if not _partitions(found.get(name)) or allowed is None:
            continue
        needs = TOPIC_NEEDS[
            "read"
            if name == settings.topic_segments
            else "both"
            if name == settings.topic_sessions
            else "write"
        ]
        if lost := [need for need in needs if need not in allowed]:
            lacking.append((name, lost))
    if lacking:
        for name, lost in lacking:
            detail = f"no right to {', '.join(lost).lower()} {name}"
            yield Finding("acls", "error", detail, _acl(settings, name, *lost))
    elif any("authorized_operations" in topic for topic in found.values()):
        yield Finding("acls", "ok", "this login may read and write what a worker needs")


def _acl(settings: Settings, topic: str, *operations: str) -> str:
    user = settings.sasl_username or "ANONYMOUS"
    rights = " ".join(f"--operation {operation.title()}" for operation in operations)
    return (
        f"kafka-acls.sh --bootstrap-server {settings.bootstrap} --add --allow-principal User:{user}"
        f" {rights} --topic {topic}"
    )


def _limits(settings: Settings, admin: Any, found: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    from kafka.admin import ConfigFilterType, ConfigResource, ConfigResourceType

    from pipelines.kafka.topic_check import MESSAGE_LIMIT

    written = [
        n for n in settings.topics if n != settings.topic_segments and _partitions(found.get(n))
    ]
    if not written:
        return
    asked = [ConfigResource(ConfigResourceType.TOPIC, name, [MESSAGE_LIMIT]) for name in written]
    answer = admin.describe_configs(asked, config_filter=ConfigFilterType.ALL).get("topic", {})
    small = {
        name: int(configs[MESSAGE_LIMIT]["value"])
        for name, configs in answer.items()
        if MESSAGE_LIMIT in configs
        and int(configs[MESSAGE_LIMIT]["value"]) < settings.max_message_bytes
    }
    for name, limit in small.items():
        yield Finding(
            "message limit",
            "warning" if limit > settings.operator.max_text_bytes else "error",
            f"{name} takes messages of {limit} bytes, max_message_bytes is"
            f" {settings.max_message_bytes}",
            f"kafka-configs.sh --bootstrap-server {settings.bootstrap} --alter --entity-type topics"
            f" --entity-name {name} --add-config {MESSAGE_LIMIT}={settings.max_message_bytes}",
        )
    if not small:
        yield Finding("message limit", "ok", f"at least {settings.max_message_bytes} bytes")


def _producers_clock(settings: Settings, found: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """The newest input records' timestamps: one from the future means that clocks differ."""
    from pipelines.kafka.tools import KafkaConsumer, KafkaError, TopicPartition, connection

    count = _partitions(found.get(settings.topic_segments))
    if not count:
        return
    parts = [TopicPartition(settings.topic_segments, n) for n in range(count)]
    newest = None
    try:
        options = connection(settings, "longstream-doctor")
        consumer = KafkaConsumer(**options, enable_auto_commit=False, group_id=None)
        with contextlib.closing(consumer):
            consumer.assign(parts)
            ends = consumer.end_offsets(parts)
            filled = [part for part in parts if ends[part] > 0]
            for part in filled:
                consumer.seek(part, ends[part] - 1)
            deadline = time.monotonic() + 3.0
            while filled and time.monotonic() < deadline:
                for part, records in consumer.poll(timeout_ms=500).items():
                    newest = max(newest or 0, *(record.timestamp for record in records))
                    filled = [other for other in filled if other != part]
    except (KafkaError, OSError, AssertionError) as error:
        detail = f"newest input not read ({type(error).__name__})"
        yield Finding(
            "producers' clock", "warning", detail, _acl(settings, settings.topic_segments, "READ")
        )
        return
    if newest is None:
        return
    ahead = newest / 1000 - time.time()
    if ahead > CLOCK_SKEW_S:
        detail = f"the newest input comes from {ahead:.0f} s in the future"
        yield Finding(
            "producers' clock", "error", detail, "timedatectl set-ntp true (here or there)"
        )
    else:
        yield Finding("producers' clock", "ok", f"the newest input is {-ahead:.0f} s old")
