"""What did I miss? Type a stream's name; the bot says what changed in its notes since you last asked.

python examples/catch_up_bot.py
"""

from __future__ import annotations

import json
import os
import sys

from kafka import KafkaConsumer

TOPIC = os.environ.get("LONGSTREAM_TOPIC_SUMMARIES_LATEST", "insights.summaries.latest.v1")
BROKER = os.environ.get("LONGSTREAM_BOOTSTRAP", "127.0.0.1:9092")
WORDS = {"done": " (done)", "superseded": " (no longer)", "withdrawn": " (taken back)"}


class Bot:
    """The newest notes of each stream, and what the user has seen of them."""

    def __init__(self) -> None:
        self.notes: dict[str, dict] = {}
        self.seen: dict[str, tuple[int, int]] = {}

    def take(self, event: dict) -> None:
        """Keep the highest (epoch, revision): an event may come twice."""
        known = self.notes.get(event["stream_id"])
        if known is None or place(known) < place(event):
            self.notes[event["stream_id"]] = event

    def answer(self, stream: str) -> list[str]:
        event = self.notes.get(stream)
        if event is None:
            return [f"nothing is known of {stream}"]
        epoch, revision = self.seen.get(stream, (event["epoch"], -1))
        since = revision if epoch == event["epoch"] else -1
        self.seen[stream] = place(event)
        news = [item for item in event["items"] if item["last_changed_revision"] > since]
        return [item["text"] + WORDS.get(item["state"], "") for item in news] or ["nothing new"]


def place(event: dict) -> tuple[int, int]:
    return event["epoch"], event["revision"]


def main() -> None:
    bot = Bot()
    consumer = KafkaConsumer(
        TOPIC,
        bootstrap_servers=BROKER,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    for line in sys.stdin:
        for records in consumer.poll(timeout_ms=2000).values():
            for record in records:
                if record.value is not None:  # a tombstone: the stream was forgotten
                    bot.take(json.loads(record.value))
        print("\n".join(bot.answer(line.strip())), flush=True)


if __name__ == "__main__":
    main()
