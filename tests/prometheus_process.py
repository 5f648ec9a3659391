"""A real Prometheus on a free port, with our rules in a hurry if asked."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.dev.broker.base import free_ports

RULES = Path(__file__).resolve().parent.parent / "dashboards" / "prometheus"
SCRAPE = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}


def hurried(rules: Any, by: int) -> Any:
    """The same rules with every span of time shorter by a factor: ``[10m]``, ``offset 10m``, ``for``."""

    def shorter(found: re.Match[str]) -> str:
        return f"{max(1, int(found[1]) * {'s': 1, 'm': 60, 'h': 3600}[found[2]] // by)}s"

    if isinstance(rules, dict):
        return {
            key: re.sub(r"\b(\d+)([smh])\b", shorter, value)
            if key in ("expr", "for")
            else hurried(value, by)
            for key, value in rules.items()
        }
    return [hurried(rule, by) for rule in rules] if isinstance(rules, list) else rules


class Prometheus:
    """Scrapes ``targets`` (host:port) every second; a context manager."""

    def __init__(
        self, program: str, folder: Path, targets: Sequence[str], rules: dict[str, Any]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in rules.items():
            (folder / name).write_text(yaml.safe_dump(content))
        job = {"job_name": "longstream", "static_configs": [{"targets": list(targets)}]}
        config = {"global": SCRAPE, "rule_files": [*rules], "scrape_configs": [job]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.address}",
                "--log.level=error",
            ]
        )

    def __enter__(self) -> Prometheus:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                self.query("vector(1)")
            except OSError:
                time.sleep(0.2)
            else:
                return self
        raise TimeoutError("Prometheus does not answer")

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def query(self, expression: str) -> list[dict[str, Any]]:
        asked = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{self.address}/api/v1/query?{asked}") as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {a["metric"]["alertname"] for a in self.query('ALERTS{alertstate="firing"}')}
