"""What the containers run, run outside of them against a real broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.kafka_settings import environment_of
from tests.test_containers import COMPOSE, run_image


def test_the_topics_service_makes_the_topics_and_ends(tmp_path: Path, topics: Any) -> None:
    service = yaml.safe_load(COMPOSE.read_text())["services"]["topics"]
    names = {
        name: f"{value}.image" if "TOPIC" in name else value
        for name, value in environment_of(topics).items()
        if name.startswith("LONGSTREAM_")
    }
    done = run_image(tmp_path, *service["command"], **names, LONGSTREAM_PARTITIONS="3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": created") == 8
    again = run_image(tmp_path, *service["command"], **names, LONGSTREAM_PARTITIONS="3")
    assert again.stdout.count(": exists") == 8
