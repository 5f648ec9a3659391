"""Hostile input by the thousand, and the account of it.

    python -m tests.fuzz --seed 7 --inputs 100000 --kafka 10000

Input number n of a seed is always the same: ``hostile(seed, n)``. ``judge`` gives one to the codec, and
checks what must hold of the answer; ``through_kafka`` puts them before a real worker and counts, on the
topics, that every record ended as an output, as a dead letter with its reason, or as a mark that was
carried out. The last line is one JSON object; a failure names seed and number.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import aiokafka
import msgspec

from operators.errors import LongstreamError, SegmentError
from operators.events import Segment
from operators.state import SessionState
from pipelines.wire import codec
from pipelines.wire.adapters import detect
from pipelines.wire.dead_letters import CUT, HEADER_BYTES
from pipelines.wire.messages import DEAD_LETTER_ROOM

MAX_TEXT = 2000
MAX_MESSAGE = 512 << 10
FRAME = 150
"""Bytes a record takes besides its key, value and headers, about."""
SWOLLEN = 0.004
"""The share of inputs that are as large as the topics take."""
STREAMS = ("standup", "board é", "call-7", "radio", "🙂")
PARTITION, OFFSET = 3, 17
WORDS = ("we", "ship", "on", "Friday", "é", "<|im_end|>", "</s>", "\u202e", "日本", "🙂", "a" * 40)
NASTY = (
    "", " ", "\x00", "\n", "\x1b[31m", "\x85", "\u2028", "\ufeff", "\ufffd", "\U0010ffff",
    "NaN", "null", "true", "{}", "[]", "'; DROP TABLE", "../../etc/passwd", "%s%n", "x" * 3000,
)  # fmt: skip
NUMBERS = (
    "0", "-0", "-1", "1e400", "-1e400", "1e-400", "9" * 400, "-" + "9" * 400, str(2**31), str(2**62),
    str(2**62 + 1), str(2**63), str(-(2**63) - 1), str(2**64), "0.1", "1.0", "NaN", "Infinity", "01",
    "+1", ".5", "5.", "0x10", "1_000",
)  # fmt: skip
ESCAPES = (r"\ud800", r"\udfff", r"\ud83d\ude42", r"\u0000", r"\x41", r"\u12", "\\", r"\"", r"\n")
FIELDS = ("schema", *Segment.__struct_fields__)
TYPES = (
    "segment",
    "session_start",
    "session_end",
    "edit",
    "session_update",
    "speaker_revision",
    "hearbeat",
    "",
)
HEADERS: tuple[tuple[str, bytes | None], ...] = (
    ("content-type", b"text/plain"),
    ("content-type", b"application/json"),
    ("content-type", b"\xff"),
    ("content-type", None),
    ("traceparent", b"00-1-2-01"),
    ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("x", b"\x00\xff"),
    ("x", b""),
    ("é" * 50, b"y" * 300),
    ("", b"no name"),
)


class Hostile(NamedTuple):
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


# --- making it -----------------------------------------------------------------------------------


def hostile(seed: int, number: int) -> Hostile:
    """The ``number``-th input of ``seed``."""
    rng = random.Random(f"{seed} {number}")
    stream = rng.choice(STREAMS)
    value = rng.choice(MAKERS)(rng, stream)
    headers = [rng.choice(HEADERS) for _ in range(rng.choice((0, 0, 0, 1, 3)))]
    given = Hostile(_key(rng, stream), value, headers)
    return _swollen(rng, given) if rng.random() < SWOLLEN else given


def _key(rng: random.Random, stream: str) -> bytes | None:
    if rng.random() < 0.8:
        return stream.encode()
    odd = (
        None,
        b"",
        b" ",
        b"\xff",
        b"\x00",
        b"k" * 257,
        b"k" * 20_000,
        rng.randbytes(5),
        b"another",
    )
    return rng.choice(odd)


def _swollen(rng: random.Random, given: Hostile) -> Hostile:
    """About as many bytes as the topics take: there is no room left for what a dead letter adds."""
    key, value, headers = given
    told = sum(len(name.encode()) + len(content or b"") + HEADER_BYTES for name, content in headers)
    room = MAX_MESSAGE - FRAME - len(key or b"") - len(value or b"") - told
    kind = rng.randrange(5)
    if kind == 0:
        return Hostile((key or b"") + b"k" * room, value, headers)
    if kind == 1:
        return Hostile(key, value, [*headers, (rng.choice(("traceparent", "x")), b"y" * room)])
    if kind == 2:
        return Hostile(key or b"a", None, [("x", b"y" * room), *headers])
    if kind == 3:  # two bytes each on the wire, and none of them a name's or a value's
        many = [("", b"")] * 20_000
        return Hostile(key, (value or b"") + b" " * (room - 2 * len(many)), [*headers, *many])
    return Hostile((key or b"") + b"k" * 20_000, (value or b"") + b" " * (room - 20_000), headers)


def _says(rng: random.Random) -> str:
    if rng.random() < 0.1:
        return rng.choice(NASTY)
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))


def _fair(rng: random.Random, stream: str) -> dict[str, Any]:
    """A segment as a good producer writes it, with some of its fields."""
    whole = {
        "schema": codec.SEGMENT_SCHEMA,
        "type": "session_end" if rng.random() < 0.03 else "segment",
        "seq": rng.randrange(1000),
        "segment_id": f"s{rng.randrange(1000)}",
        "revision": rng.randrange(3),
        "is_final": rng.random() < 0.8,
        "end_of_turn": True,
        "speaker": rng.choice(["Ana", {"id": "1"}, {"name": "Ben"}, None]),
        "start_ms": rng.choice([0, -5, 10**15, 12345]),
        "end_ms": rng.choice([0, 7, 10**15]),
        "language": "en",
        "confidence": rng.random(),
        "tenant": "t",
        "emitted_at_ms": rng.randrange(10**13),
    }
    kept = {k: v for k, v in whole.items() if rng.random() < 0.5}
    return {"stream_id": stream, "text": _says(rng), **kept}


def _fair_json(rng: random.Random, stream: str) -> bytes:
    return json.dumps(_fair(rng, stream), ensure_ascii=rng.random() < 0.5).encode()


def _plain(rng: random.Random, stream: str) -> bytes:
    return _says(rng).encode()


def _any_json(rng: random.Random, depth: int = 0) -> Any:
    kinds = 6 if depth > 4 else 8
    kind = rng.randrange(kinds)
    if kind == 6:
        return [_any_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        keys = (rng.choice((*FIELDS, *NASTY)) for _ in range(rng.randrange(4)))
        return {key: _any_json(rng, depth + 1) for key in keys}
    numbers = (rng.randint(-(2**70), 2**70), rng.uniform(-1e308, 1e308))
    return (None, rng.random() < 0.5, *numbers, rng.choice(NASTY), _says(rng))[kind]


def _shapes(rng: random.Random, stream: str) -> bytes:
    return json.dumps(_any_json(rng)).encode()


def _wrong_fields(rng: random.Random, stream: str) -> bytes:
    """A fair segment with some fields of any type."""
    wrong = {rng.choice(FIELDS): _any_json(rng, 3) for _ in range(rng.randint(1, 3))}
    wrong |= {"type": rng.choice(TYPES)} if rng.random() < 0.2 else {}
    return json.dumps(_fair(rng, stream) | wrong).encode()


def _numbers(rng: random.Random, stream: str) -> bytes:
    name = rng.choice(("seq", "revision", "start_ms", "end_ms", "confidence", "emitted_at_ms", "n"))
    return b'{"text":"a","%s":%s}' % (name.encode(), rng.choice(NUMBERS).encode())


def _escapes(rng: random.Random, stream: str) -> bytes:
    inside = "".join(rng.choices((*ESCAPES, "a", " "), k=rng.randint(1, 5)))
    return b'{"%s":"%s"}' % (rng.choice((b"text", b"segment_id", b"tenant")), inside.encode())


def _deep(rng: random.Random, stream: str) -> bytes:
    depth = rng.choice((5, 50, 500, 5000, 50_000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    inner = opened * depth + b"1" + closed * (depth if rng.random() < 0.7 else depth - 1)
    return b'{"text":"a","x":%s}' % inner


def _mutated(rng: random.Random, stream: str) -> bytes:
    data = bytearray(_fair_json(rng, stream))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[at:at] = rng.randbytes(rng.randint(1, 4))
        elif kind == 1:
            del data[at : at + rng.randint(1, 9)]
        elif kind == 2:
            data[at : at + 1] = rng.choice(
                (b"\x00", b'"', b"{", b"}", b"\\", b",", b"\xed\xa0\x80")
            )
        else:
            data[at:at] = data[: rng.randrange(20)]
    return bytes(data)


def _raw(rng: random.Random, stream: str) -> bytes | None:
    return rng.choice((None, b"", rng.randbytes(rng.randint(1, 80)), b"{" + rng.randbytes(9)))


def _twice(rng: random.Random, stream: str) -> bytes:
    """The same field more than once, and white space where JSON allows it."""
    fields = [f'"{rng.choice(FIELDS)}" : {json.dumps(_any_json(rng, 5))}' for _ in range(5)]
    return ("\ufeff \n\t{" + " ,\n".join(fields) + '\r\n, "text": "a"}').encode()


def _framed(rng: random.Random, stream: str) -> bytes:
    """Behind a schema registry's frame, whole or cut: JSON, Avro or anything."""
    body = rng.choice((_fair_json(rng, stream), _mutated(rng, stream), rng.randbytes(9), b"{", b""))
    frame = b"\x00" + rng.choice((0, 12, 127, 128, 200, 2**32 - 1)).to_bytes(4)
    return frame[: rng.choice((1, 4, 5, 5, 5, 5))] + body


def _formats(rng: random.Random, stream: str) -> bytes:
    """What is no speech, by its first bytes, and what only begins like it."""
    beginning = rng.choice(
        (
            b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"PK\x03\x04", b"Obj\x01",
            b"\xc3\x01", b"PAR1\x00", b"OggS\x00", b"\xff\xfe", b"\xfe\xff", b"\x83\xa4text",
            b"WEBVTT\n\n", b"1\n00:00:01,000 --> 00:00:02,000\n", b"<?xml ", b"eyJ0ZXh0IjoiYSJ9",
            b"[laughs] ", b"{laughs} ", b"{'text': 'a'}", b"{text: 'a'}", b'"{\\"text\\":1}"',
            b"\x0a\x05hello", b'["a"]', b"null",
        )
    )  # fmt: skip
    return beginning + rng.choice((b"", _says(rng).encode(), rng.randbytes(9)))


def _events(rng: random.Random, stream: str) -> bytes:
    """Recognisers' events, with some of their fields of another type."""
    said = _says(rng)
    best = [{"transcript": said, "confidence": 0.9, "words": []}]
    event: dict[str, Any] = rng.choice(
        (
            {"type": "Results", "is_final": True, "start": 1.5, "channel": {"alternatives": best}},
            {"type": "Turn", "turn_order": 3, "end_of_turn": True, "transcript": said, "words": []},
            {"results": [{"is_final": True, "alternatives": best}]},
            {"RecognitionStatus": "Success", "DisplayText": said, "Offset": 10, "Duration": 5},
            {"uid": "u", "segments": [{"start": "0.0", "end": "1.0", "text": said}]},
        )
    )
    for name in list(event):
        if rng.random() < 0.15:
            event[name] = _any_json(rng, 4)
    return json.dumps(event).encode()


MAKERS: tuple[Callable[[random.Random, str], bytes | None], ...] = (
    *(_fair_json, _plain, _shapes, _wrong_fields, _numbers, _escapes),
    *(_deep, _mutated, _mutated, _raw, _twice, _framed, _formats, _events),
)


# --- judging it ------------------------------------------------------------------------------------


def judge(given: Hostile) -> str:
    """ "segment", or the reason it is refused for. Raises AssertionError if the codec breaks a promise,
    and whatever the codec lets through by mistake."""
    options = {"partition": PARTITION, "offset": OFFSET, "max_text_bytes": MAX_TEXT}
    try:
        segment = codec.decode_segment(given.key, given.value, given.headers, **options)
    except SegmentError as error:
        refused = error
    else:
        _check_segment(segment)
        return "segment"
    assert refused.reason in codec.REASONS
    assert len(str(refused)) < 500
    _check_letter(given, refused)
    return refused.reason


def _check_segment(segment: Segment) -> None:
    assert 0 < len(segment.stream_id.encode()) <= codec.STREAM_ID_BYTES
    assert len(segment.text.encode()) <= MAX_TEXT
    assert segment.segment_id
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in segment.text + segment.segment_id)
    again = codec.encode_segment(segment)
    options = {"partition": 0, "offset": 1, "max_text_bytes": MAX_TEXT}
    assert codec.decode_segment(segment.stream_id.encode(), again, None, **options) == segment
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(segment), type=Segment) == segment


def _check_letter(given: Hostile, error: SegmentError) -> None:
    options: dict[str, Any] = {
        "topic": "t",
        "partition": PARTITION,
        "offset": OFFSET,
        "stage": "decode",
        "reason": error.reason,
        "message": str(error),
        "attempts": 1,
        "retryable": False,
        "failed_at_ms": 1,
    }
    key, value, headers = codec.dead_letter(*given, **options)
    assert (key, value) == (given.key, given.value)
    assert codec.original_headers(headers) == given.headers
    assert codec.header(headers, "longstream.dlq.reason") == error.reason.encode()
    limit = 50_000
    small = Hostile(*codec.dead_letter(*given, **options, max_bytes=limit))
    _check_kept(given, small, "cut", limit)
    assert _at_least(small) < limit + 4000


def _at_least(record: Hostile) -> int:
    """Bytes it takes on the wire without its frame."""
    told = sum(len(name.encode()) + len(content or b"") + 2 for name, content in record.headers)
    return len(record.key or b"") + len(record.value or b"") + told


def _check_kept(given: Hostile, letter: Hostile, place: object, limit: int) -> None:
    """The dead letter is the record, or says by size and sha256 what was cut of one above the limit."""
    cut = {name: told for name, told in letter.headers if name.startswith(CUT)}
    assert not cut or _at_least(given) + HEADER_BYTES * len(given.headers) > limit, place
    wholes = ((f"{CUT}_key", letter.key, given.key), (CUT, letter.value, given.value))
    for name, kept, whole in wholes:
        if name in cut:
            assert whole is not None, place
            assert kept == whole[: len(kept or b"")], place
            assert cut[name] == _told(whole), place
        else:
            assert kept == whole, place
    kept_headers, left = codec.original_headers(letter.headers), list(given.headers)
    if f"{CUT}_headers" not in cut:
        assert kept_headers == left, place
        return
    for pair in kept_headers:
        left.remove(pair)
    parts = b"".join(name.encode() + (content or b"") for name, content in left)
    assert cut[f"{CUT}_headers"] == b"count=%d %s" % (len(left), _told(parts)), place


def _told(data: bytes) -> bytes:
    return f"size={len(data)} sha256={hashlib.sha256(data).hexdigest()}".encode()


def read_as_results(value: bytes | None) -> None:
    """The same bytes where recovery and viewers read states and events: refused, never a crash."""
    state, problem = codec.decode_state(value)
    assert isinstance(state, SessionState) or problem
    with contextlib.suppress(LongstreamError):
        codec.decode_event(value or b"")


def through_codec(seed: int, count: int) -> Counter[str]:
    """How many of ``count`` inputs ended how. An error says which input it was."""
    found: Counter[str] = Counter()
    for number in range(count):
        given = hostile(seed, number)
        try:
            found[judge(given)] += 1
            read_as_results(given.value)
        except Exception as error:
            raise AssertionError(f"seed {seed}, input {number}: {given!r}"[:2000]) from error
    return found


# --- through Kafka ---------------------------------------------------------------------------------


def through_kafka(
    topics: Any, folder: Path, seed: int, count: int, partitions: int = 4, timeout: float = 600.0
) -> dict[str, Any]:
    """Put ``count`` inputs before a real worker with the echo operator and account for each.

    Creates the topics. Returns the counts; raises AssertionError for a record that is nowhere, or in
    two places, or whose dead letter is not what was sent.
    """
    from pipelines.kafka.topics import create_topics
    from tests.worker_process import Records, wait_until, workers

    specs = [replace(spec, max_message_bytes=MAX_MESSAGE) for spec in topics.specs]
    create_topics(topics.bootstrap, specs, partitions)
    names = (topics.segments, topics.translations, topics.dlq)
    limits = {"operator__targets": "fr", "operator__max_text_bytes": MAX_TEXT}
    limits |= {"max_message_bytes": MAX_MESSAGE}
    with (
        workers(topics, folder, **limits) as start,
        Records(topics.bootstrap, *names, partitions=partitions) as seen,
    ):
        worker = start()
        asyncio.run(_produce(topics, seed, count, partitions))
        wait_until(lambda: len(seen.records[topics.segments]) == count, timeout)
        sent = {(r.partition, r.offset): r for r in seen.records[topics.segments]}
        marks = {place for place, record in sent.items() if _is_mark(record)}

        def all_there() -> bool:
            assert worker.process.poll() is None, worker.log[-3000:]
            done = len(seen.records[topics.translations]) + len(seen.records[topics.dlq])
            refused_marks = sum(_source(r) in marks for r in seen.records[topics.dlq])
            return done - refused_marks >= count - len(marks)

        wait_until(all_there, timeout, seen.records.keys())
        time.sleep(1.0)  # whatever is too much would come now
        return _account(sent, marks, seen.records[topics.translations], seen.records[topics.dlq])


async def _produce(topics: Any, seed: int, count: int, partitions: int) -> None:
    """By aiokafka, which lets headers without a value through (kafka-python refuses them). Records
    with a key go where Kafka's partitioner puts them; those without are spread."""
    made = aiokafka.AIOKafkaProducer(bootstrap_servers=topics.bootstrap, linger_ms=5)
    await made.start()
    try:
        acks = []
        for number in range(count):
            given = hostile(seed, number)
            value = given.value if given.key is not None or given.value is not None else b""
            acks.append(
                await made.send(
                    topics.segments,
                    key=given.key,
                    value=value,
                    headers=given.headers,
                    partition=None if given.key is not None else number % partitions,
                )
            )
        await asyncio.gather(*acks)
    finally:
        await made.stop()


def _account(
    sent: dict[tuple[int, int], Any],
    marks: set[tuple[int, int]],
    outputs: list[Any],
    dead: list[Any],
) -> dict[str, Any]:
    ended: Counter[tuple[int, int]] = Counter()
    for record in outputs:
        source = json.loads(record.value)["source"]
        assert source["first_offset"] == source["last_offset"]
        ended[record.partition, source["last_offset"]] += 1
    reasons: Counter[str] = Counter()
    limit = MAX_MESSAGE - DEAD_LETTER_ROOM
    for letter in dead:
        place = _source(letter)
        original = sent[place]
        value = original.value
        if original.key is None and value is None:
            value = b""  # a record of neither cannot be written
        given = Hostile(original.key, value, list(original.headers))
        _check_kept(given, Hostile(letter.key, letter.value, letter.headers), place, limit)
        ended[place] += 1
        reasons[(codec.header(letter.headers, "longstream.dlq.reason") or b"").decode()] += 1
    lost = [place for place in sent if not ended[place] and place not in marks]
    assert not lost, f"neither an output nor a dead letter: {lost[:5]}"
    twice = [place for place, times in ended.items() if times > 1]
    assert not twice, f"more than once: {twice[:5]}"
    assert set(ended) <= set(sent)
    return {
        "records": len(sent),
        "outputs": len(outputs),
        "marks": len(marks - set(ended)),
        "dead_letters": dict(sorted(reasons.items())),
    }


def _is_mark(record: Any) -> bool:
    """Whether the record ends a stream, which the echo operator answers with a summary only, or is a
    recogniser's event: one without words, or that repeats others, gives nothing."""
    options = {"partition": record.partition, "offset": record.offset, "max_text_bytes": MAX_TEXT}
    try:
        segment = codec.decode_segment(record.key, record.value, record.headers, **options)
    except SegmentError as error:
        return error.reason == "unknown_event"
    return segment.type == "session_end" or _is_event(record.value)


def _is_event(value: bytes) -> bool:
    try:
        event = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and detect(event) is not None


def _source(letter: Any) -> tuple[int, int]:
    said = {name: value.decode() for name, value in letter.headers if name.startswith("__streams.")}
    return int(said["__streams.errors.partition"]), int(said["__streams.errors.offset"])


def _run(seed: int, inputs: int, records: int) -> Iterator[tuple[str, Any]]:
    started = time.monotonic()
    yield "codec", dict(sorted(through_codec(seed, inputs).items()))
    yield "codec_seconds", round(time.monotonic() - started, 1)
    if not records:
        return
    from pipelines.dev import broker
    from tests.topics import Topics

    started = time.monotonic()
    with broker.from_environment() as kafka, tempfile.TemporaryDirectory() as folder:
        names = Topics(kafka.bootstrap, f"fuzz{uuid.uuid4().hex[:8]}.")
        yield "kafka", through_kafka(names, Path(folder), seed, records)
    yield "kafka_seconds", round(time.monotonic() - started, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inputs", type=int, default=100_000, help="through the codec")
    parser.add_argument("--kafka", type=int, default=10_000, help="of them through Kafka")
    chosen = parser.parse_args()
    found: dict[str, Any] = {"seed": chosen.seed, "inputs": chosen.inputs}
    for name, value in _run(chosen.seed, chosen.inputs, chosen.kafka):
        print(f"{name}: {value}", flush=True)
        found[name] = value
    print(json.dumps(found))


if __name__ == "__main__":
    main()
