"""``longstream doctor`` against a real broker: from nothing to a topic that takes too little."""

from __future__ import annotations

import json
import time
from typing import Any

from kafka import KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType

from pipelines.cli.diagnosis import Finding, broker
from pipelines.config.fields import Settings
from pipelines.kafka.topics import admin_client, create_topics, topic_specs


def look(settings: Settings) -> dict[str, Finding]:
    return {finding.check: finding for finding in broker(settings)}


def test_doctor_follows_a_broker_from_nothing_to_ready(kafka: str, topics: Any) -> None:
    names = {f"topic_{n}": f"doctor.{time.time_ns()}.{n}" for n in (
        "segments", "summaries", "summaries_latest", "translations", "sessions", "dlq", "questions",
        "answers")}  # fmt: skip
    settings = Settings(bootstrap=kafka, max_message_bytes=2 << 20, **names)
    before = look(settings)
    assert before["kafka"].status == "ok"
    assert before["topics"].mend == "longstream topics create"
    create_topics(kafka, topic_specs(settings), 2, replication_factor=1)
    ready = look(settings)
    assert {check: f.status for check, f in ready.items()} == {
        "kafka": "ok", "topics": "ok", "acls": "ok", "message limit": "ok",
    }  # fmt: skip
    assert "8 topics of 2 partitions" in ready["topics"].detail

    with admin_client(kafka) as admin:
        resource = ConfigResource(
            ConfigResourceType.TOPIC, settings.topic_sessions, {"max.message.bytes": "300000"}
        )
        admin.alter_configs([resource])
    producer = KafkaProducer(bootstrap_servers=kafka)
    ahead = int(time.time() * 1000) + 60_000
    producer.send(settings.topic_segments, json.dumps({"text": "x"}).encode(), timestamp_ms=ahead)
    producer.close()
    wrong = look(settings)
    assert wrong["message limit"].status == "warning"
    assert f"--entity-name {settings.topic_sessions}" in wrong["message limit"].mend
    assert wrong["producers' clock"].status == "error"


def test_doctor_says_why_a_login_is_refused(secure_kafka: Any) -> None:
    settings = Settings(
        bootstrap=secure_kafka.bootstrap,
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="ana",
        sasl_password="wrong-word",
        ssl_cafile=secure_kafka.cafile,
    )
    found = look(settings)
    assert found["kafka"].status == "error"
    assert "refuses the login" in found["kafka"].detail
    assert "wrong-word" not in found["kafka"].detail
