"""WhisperLive's messages to Kafka, as they are: longstream reads them itself.

websocat ws://127.0.0.1:9090 | python examples/whisperlive_events.py --stream meeting

Any recogniser of docs/inputs.md is sent in this way; --from names it.
"""

from __future__ import annotations

import argparse
import os
import sys

from kafka import KafkaProducer

TOPIC = os.environ.get("LONGSTREAM_TOPIC_SEGMENTS", "transcripts.segments.v1")
BROKER = os.environ.get("LONGSTREAM_BOOTSTRAP", "127.0.0.1:9092")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stream", required=True)
    parser.add_argument("--from", dest="recogniser", default="whisperlive")
    options = parser.parse_args(arguments)
    headers = [("content-type", f"application/vnd.{options.recogniser}+json".encode())]
    sent = 0
    with KafkaProducer(bootstrap_servers=BROKER, acks="all", enable_idempotence=True) as producer:
        for message in sys.stdin:  # the key is the stream: its records keep their order
            if message.strip():
                value = message.strip().encode()
                producer.send(TOPIC, key=options.stream.encode(), value=value, headers=headers)
                sent += 1
    return sent


if __name__ == "__main__":
    print(main(), "messages sent")
