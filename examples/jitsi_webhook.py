"""A web hook for Jitsi's transcription results: POST /ROOM with its JSON puts it on Kafka.

python examples/jitsi_webhook.py --port 8088

On loopback and without a password: put a proxy that asks for one in front.
"""

from __future__ import annotations

import argparse
import os

from aiohttp import web
from aiokafka import AIOKafkaProducer

TOPIC = os.environ.get("LONGSTREAM_TOPIC_SEGMENTS", "transcripts.segments.v1")
BROKER = os.environ.get("LONGSTREAM_BOOTSTRAP", "127.0.0.1:9092")
HEADERS = [("content-type", b"application/vnd.jitsi+json")]
MAX_BYTES = 256 * 1024
PRODUCER: web.AppKey[AIOKafkaProducer] = web.AppKey("producer", AIOKafkaProducer)


async def take(request: web.Request) -> web.Response:
    room = request.match_info["room"]
    producer = request.app[PRODUCER]
    await producer.send_and_wait(
        TOPIC, key=room.encode(), value=await request.read(), headers=HEADERS
    )
    return web.Response(status=202)


async def connected(app: web.Application):
    app[PRODUCER] = AIOKafkaProducer(bootstrap_servers=BROKER, enable_idempotence=True)
    await app[PRODUCER].start()
    yield
    await app[PRODUCER].stop()


def application() -> web.Application:
    app = web.Application(client_max_size=MAX_BYTES)
    app.router.add_post("/{room}", take)
    app.cleanup_ctx.append(connected)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8088)
    web.run_app(application(), host="127.0.0.1", port=parser.parse_args().port)
