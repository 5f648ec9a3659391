"""Apache Kafka itself, as a JVM process from jars that Maven brings (kafka/pom.xml).

One node is broker and KRaft controller at once. Needs Java 17 or newer, and Maven the first time.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipelines.dev.broker.base import KAFKA_VERSION, BrokerError, Kind, Log, free_ports
from pipelines.dev.broker.cache import cached_folder
from pipelines.dev.broker.process import ProcessBroker, log_tail

KAFKA_FOLDER = Path(__file__).with_name("kafka")
MIN_JAVA = 17
MAVEN_SECONDS = 900
# Small heap, one collector thread, quick compiler only: a broker beside a model on two cores.
HEAP = ("-Xms96m", "-Xmx512m")
JAVA_FLAGS = [
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Xshare:auto",
    "-Djava.awt.headless=true",
]


class JvmBroker(ProcessBroker):
    kind: Kind = "jvm"


def java() -> str:
    """A Java of version 17 or later, from JAVA_HOME or PATH; :class:`BrokerError` if none."""
    home = os.environ.get("JAVA_HOME")
    candidates = [str(Path(home) / "bin" / "java")] if home else []
    on_path = shutil.which("java")
    if on_path:
        candidates.append(on_path)
    seen = []
    for candidate in candidates:
        try:
            answer = subprocess.run(  # noqa: S603 - a java the user installed
                [candidate, "-version"], capture_output=True, text=True, timeout=20, check=True
            ).stderr
        except (OSError, subprocess.SubprocessError):
            continue
        version = re.search(r'version "(\d+)', answer)
        if version and int(version[1]) >= MIN_JAVA:
            return candidate
        seen.append(version[1] if version else "unknown")
    found = f"only version {', '.join(seen)} was found" if seen else "none was found"
    raise BrokerError(f"Kafka needs Java {MIN_JAVA} or newer and {found}")


def jars(cache: Path, log: Log) -> Path:
    """The folder with Kafka's jars, fetched by Maven once per version of the pom."""
    pom = KAFKA_FOLDER / "pom.xml"
    if not pom.is_file():
        raise BrokerError(f"{pom} is missing: install longstream again")
    digest = hashlib.sha256(pom.read_bytes()).hexdigest()[:16]
    return cached_folder(cache, f"kafka/{digest}", lambda folder: _fetch_jars(pom, folder, log))


def _fetch_jars(pom: Path, folder: Path, log: Log) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerError("Kafka's jars are not in the cache and Maven (mvn) is not installed")
    log("fetching Kafka's jars with Maven (once, 45 MB)")
    command = [maven, "-q", "-B", "-Dstyle.color=never", "-f", str(pom)]
    command.append("dependency:copy-dependencies")
    try:
        done = subprocess.run(  # noqa: S603 - the user's Maven
            [*command, "-DincludeScope=runtime", f"-DoutputDirectory={folder}"],
            capture_output=True,
            text=True,
            timeout=MAVEN_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerError(f"Maven could not fetch Kafka's jars: {error}") from error
    if done.returncode != 0 or not any(folder.glob("kafka_*.jar")):
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise BrokerError(f"Maven could not fetch Kafka's jars:\n{tail}")


def server_properties(port: int, controller_port: int, data: Path) -> dict[str, str]:
    """Settings of a one-node broker that starts fast and forgets nothing while it lives."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(data),
        **COMMON_PROPERTIES,
    }


# Shared with the Docker broker, so that tests see the same server either way.
COMMON_PROPERTIES = {
    # One node cannot hold the three replicas these internal topics ask for by default.
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # 50 partitions each by default: only start-up time here.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    # A mistyped topic is an error, not a new topic with the wrong partition count.
    "auto.create.topics.enable": "false",
    # Large enough to carry an oversized input to us, so that we can refuse it with a reason.
    "message.max.bytes": str(16 << 20),
    "log.cleaner.dedupe.buffer.size": str(16 << 20),
    "num.network.threads": "2",
    "num.io.threads": "4",
}

# After a crash the controller refuses the broker until its earlier self has not been heard for this
# long, 9 s by default. Shorter would fence a healthy broker on a busy machine, so only for tests
# that kill it.
FAST_RESTART = {"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500"}


def start_jvm(
    cache: Path, log: Log, *, port: int | None = None, properties: Mapping[str, str] | None = None
) -> JvmBroker:
    """Start Kafka on ``port`` (default: a free one) of the loopback interface.

    ``properties`` are added to, or replace, those of :func:`server_properties`.
    """
    program, classpath = java(), str(jars(cache, log) / "*")
    for attempt in (1, 2, 3):
        broker = _prepare(program, classpath, port, properties or {})
        try:
            broker.launch()
            return broker
        except BaseException as error:
            port_taken = "BindException" in log_tail(broker.log, 400)
            broker.close()
            # Between finding a free port and listening on it somebody else may have taken it.
            if port is not None or not port_taken or attempt == 3:
                raise
            log(f"a port was taken meanwhile, trying others ({type(error).__name__})")
    raise AssertionError("unreachable")


def _prepare(
    program: str, classpath: str, port: int | None, properties: Mapping[str, str]
) -> JvmBroker:
    """A folder with configuration and formatted storage, and the broker that would run on it."""
    folder = Path(tempfile.mkdtemp(prefix="longstream-kafka-"))
    try:
        *client, controller = free_ports(1 if port else 2)
        port = port or client[0]
        settings = server_properties(port, controller, folder / "data") | dict(properties)
        config = folder / "server.properties"
        config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        run = java_command(program, classpath, folder)
        format_storage(run, config, folder / "server.log")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    description = f"Apache Kafka {KAFKA_VERSION} (JVM, 127.0.0.1:{port})"
    return JvmBroker(f"127.0.0.1:{port}", description, folder, [*run, "kafka.Kafka", str(config)])


def java_command(
    program: str, classpath: str, folder: Path, *, heap: tuple[str, str] = HEAP
) -> list[str]:
    """Java with everything but the class to run; it writes nothing outside ``folder``."""
    run = [program, *heap, *JAVA_FLAGS, f"-Djava.io.tmpdir={folder}"]
    return [
        *run,
        f"-Dlog4j2.configurationFile={KAFKA_FOLDER / 'log4j2.properties'}",
        "-cp",
        classpath,
    ]


def format_storage(run: list[str], config: Path, output: Path, *, standalone: bool = True) -> None:
    """Write the KRaft metadata of a new node into its data folder; ``standalone``: of a cluster of
    one, else the configuration names the others."""
    command = [*run, "kafka.tools.StorageTool", "format"]
    command += ["--standalone"] if standalone else []
    command += ["--cluster-id", "bG9uZ3N0cmVhbS1sb2NhbA", "--config", str(config)]
    with output.open("ab") as opened:
        done = subprocess.run(  # noqa: S603 - our own command
            command, stdin=subprocess.DEVNULL, stdout=opened, stderr=opened, timeout=90
        )
    if done.returncode != 0:
        raise BrokerError(f"Kafka's storage could not be formatted:\n{log_tail(output)}")
