"""Every new note of every stream, by kafka-python alone: python examples/kafka_consumer.py"""

import json
import os

from kafka import KafkaConsumer

TOPIC = os.environ.get("LONGSTREAM_TOPIC_SUMMARIES", "insights.summaries.v1")
BROKER = os.environ.get("LONGSTREAM_BOOTSTRAP", "127.0.0.1:9092")


def notes(**options):
    for record in KafkaConsumer(TOPIC, bootstrap_servers=BROKER, **options):
        event = json.loads(record.value)
        for item in event["items"]:
            if item["last_changed_revision"] == event["revision"]:
                yield event["stream_id"], item["kind"], item["text"]


if __name__ == "__main__":
    for note in notes(isolation_level="read_committed"):
        print(*note, sep=" | ")
