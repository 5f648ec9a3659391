"""The container files, as far as they can be checked without a container engine."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config.fields import Settings
from pipelines.config.load import describe, load_settings
from pipelines.observability.http import Readiness, serve
from pipelines.observability.metrics import Metrics

with warnings.catch_warnings():  # kafka-python reads its resources in a deprecated way on import
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
    from pipelines.kafka.topics import DEFAULT_PARTITIONS, TOPICS

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def workers(compose: dict[str, Any]) -> list[dict[str, Any]]:
    found = [s for s in compose["services"].values() if s["image"].startswith("longstream:")]
    assert found
    return found


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, arguments) of every line, continuation lines joined, comments dropped."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines) if name]


def test_ports_are_published_on_loopback_only(compose: dict[str, Any]) -> None:
    published = [port for s in compose["services"].values() for port in s.get("ports", [])]
    assert len(published) >= 5
    assert all(re.fullmatch(r"127\.0\.0\.1:[\d-]+:\d+", port) for port in published)
    assert not any("network_mode" in service for service in compose["services"].values())


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if "build" not in service:
            assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), name


def test_every_mounted_file_is_there(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), f"{name}: {source}"
                assert mount.endswith(":ro"), f"{name}: {mount}"
            else:
                assert source in compose["volumes"], f"{name}: {source}"


def test_services_waited_for_can_be_healthy(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}"
            else:
                assert services[other]["restart"] == "no", f"{name} waits for {other} to end"


def test_workers_run_with_nothing_they_do_not_need(compose: dict[str, Any]) -> None:
    for worker in workers(compose):
        assert worker["read_only"] is True
        assert worker["cap_drop"] == ["ALL"]
        assert worker["security_opt"] == ["no-new-privileges:true"]
        assert any(mount.startswith("/tmp") for mount in worker["tmpfs"])
        grace = int(worker["stop_grace_period"].removesuffix("s"))
        assert grace > Settings().stop_deadline_s


def test_no_service_can_gain_rights(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "user", "devices", "pid", "ipc"} & set(service), name
        assert not any("docker.sock" in mount for mount in service.get("volumes", [])), name


def test_no_secret_stands_in_a_container_file(compose: dict[str, Any]) -> None:
    secrets = re.compile(r"PASSWORD|TOKEN|SECRET", re.IGNORECASE)
    for name, service in compose["services"].items():
        assert not [key for key in service.get("environment", {}) if secrets.search(key)], name
    assert not [
        rest for word, rest in dockerfile() if word in ("ENV", "ARG") and secrets.search(rest)
    ]


def test_workers_are_given_settings_that_exist(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {row.env for row in describe()}
    for worker in workers(compose):
        assert {name for name in worker["environment"]} <= known
        for name in [name for name in os.environ if name.startswith("LONGSTREAM_")]:
            monkeypatch.delenv(name)
        for name, value in worker["environment"].items():
            monkeypatch.setenv(name, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))
        settings = load_settings()
        assert settings.http_port == 6066
        internal = compose["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
        assert f"INTERNAL://{settings.bootstrap}," in internal


def test_kafka_tells_each_side_an_address_it_can_reach(compose: dict[str, Any]) -> None:
    kafka = compose["services"]["kafka"]
    environment = kafka["environment"]

    def listeners(name: str) -> dict[str, str]:
        return dict(entry.split("://") for entry in environment[name].split(","))

    bound, told = listeners("KAFKA_LISTENERS"), listeners("KAFKA_ADVERTISED_LISTENERS")
    protocols = dict(
        entry.split(":") for entry in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    )
    assert set(bound) == set(protocols)
    assert set(told) == set(bound) - {environment["KAFKA_CONTROLLER_LISTENER_NAMES"]}
    assert told["INTERNAL"] == "kafka" + bound["INTERNAL"]
    assert f"{told['EXTERNAL']}{bound['EXTERNAL']}" in kafka["ports"]


def test_prometheus_scrapes_the_port_workers_listen_on(compose: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "dashboards/prometheus/prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    [discovery] = job["dns_sd_configs"]
    assert discovery["names"] == ["worker"]
    for worker in workers(compose):
        assert worker["environment"]["LONGSTREAM_HTTP_PORT"] == str(discovery["port"])
    mounts = compose["services"]["prometheus"]["volumes"]
    for name in ("prometheus.yml", *config["rule_files"]):
        assert f"../dashboards/prometheus/{name}:/etc/prometheus/{name}:ro" in mounts


def test_grafana_finds_its_boards_where_they_are_mounted(compose: dict[str, Any]) -> None:
    grafana = compose["services"]["grafana"]
    environment = grafana["environment"]
    [mount] = [m for m in grafana["volumes"] if m.startswith(".")]
    source, target, _ = mount.split(":")
    folder = (DOCKER / source).resolve()

    def on_host(path: str) -> Path:
        return folder / Path(path).relative_to(target)

    assert on_host(environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).is_file()
    provisioning = on_host(environment["GF_PATHS_PROVISIONING"])
    [provider] = yaml.safe_load((provisioning / "dashboards/longstream.yml").read_text())[
        "providers"
    ]
    assert list(on_host(provider["options"]["path"]).glob("*.json"))
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"].removeprefix("$") in environment


def test_topics_created_in_containers_are_those_of_the_code(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tool = tmp_path / "kafka-topics.sh"
    tool.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{log}"\n')
    tool.chmod(0o755)
    environment = {**os.environ, "KAFKA_BIN": str(tmp_path), "BOOTSTRAP": "kafka:1"}
    subprocess.run(
        ["/bin/sh", str(DOCKER / "create-topics.sh")], env=environment, check=True, timeout=20
    )
    made = {}
    for line in log.read_text().splitlines():
        words = line.split()
        option = dict(pairwise(words))
        assert option["--partitions"] == str(DEFAULT_PARTITIONS)
        assert "--if-not-exists" in words
        configs = [words[i + 1] for i, word in enumerate(words) if word == "--config"]
        made[option["--topic"]] = dict(config.split("=") for config in configs)
    limit = {"max.message.bytes": str(Settings().max_message_bytes)}
    assert made == {topic.name: topic.configs() | limit for topic in TOPICS}


def test_dockerfile_ends_as_a_user_without_rights() -> None:
    lines = dockerfile()
    final = lines[max(i for i, (name, _) in enumerate(lines) if name == "FROM") :]
    users = [rest for name, rest in final if name == "USER"]
    assert users == ["10001:10001"]
    assert ("ENTRYPOINT", '["longstream"]') in final
    [health] = [rest for name, rest in final if name == "HEALTHCHECK"]
    assert "/live" in health


def test_dockerfile_names_no_package_index_and_copies_what_exists() -> None:
    lines = dockerfile()
    assert ("ARG", 'TORCH_INDEX_URL=""') in lines
    # the only address is the worker's own, in the health check
    addresses = re.findall(r"https?://[^'\s]+", "\n".join(rest for _, rest in lines))
    assert addresses == ["http://127.0.0.1:"]
    allowed = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    for name, rest in lines:
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert f"!{source}" in allowed, source
                assert (ROOT / source).exists(), source


def run_health_check(port: int) -> subprocess.CompletedProcess[str]:
    [health] = [rest for name, rest in dockerfile() if name == "HEALTHCHECK"]
    _, _, script = yaml.safe_load(health[health.index("[") :])
    return subprocess.run(
        [sys.executable, "-c", script],
        env={"LONGSTREAM_HTTP_PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=20,
    )


def test_the_health_check_passes_with_a_worker_that_answers_and_fails_without() -> None:
    async def ask() -> tuple[int, int]:
        server = await serve("127.0.0.1", 0, Metrics(), Readiness())
        alive = await asyncio.to_thread(run_health_check, server.port)
        await server.close()
        gone = await asyncio.to_thread(run_health_check, server.port)
        return alive.returncode, gone.returncode

    assert asyncio.run(ask()) == (0, 1)


def compose_command() -> list[str]:
    """The compose plugin, else Debian's docker-compose 1.29; neither needs an engine to check."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is not None:
            probe = subprocess.run([*command, "version"], capture_output=True, timeout=60)
            if probe.returncode == 0:
                return command
    pytest.skip("no docker compose here: its own check of compose.yml was not run")


def test_compose_accepts_the_file() -> None:
    command, text = compose_command(), COMPOSE.read_text()
    if command == ["docker-compose"]:  # of the specification it lacks the project's name only
        text = re.sub("^name: .*$", "", text, flags=re.MULTILINE)
    done = subprocess.run(
        [*command, "-f", "-", "--profile", "gpu", "config"],
        cwd=DOCKER,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == set(yaml.safe_load(text)["services"])
