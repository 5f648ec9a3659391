"""What `lag`, `topics check` and `state show` say of topics on a real broker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from operators.state import SessionState
from pipelines.wire.codec import encode_state
from tests.kafka_settings import settings_of

ROOT = Path(__file__).parents[2]


def longstream(topics: Any, *words: str, code: int = 0) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", *words, "--json"],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=ROOT,
        env=environment(topics),
        check=False,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)
