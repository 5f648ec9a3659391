"""Which partition a stream belongs on: what Kafka's default partitioner makes of its id."""

from __future__ import annotations

from aiokafka.partitioner import murmur2

from operators.errors import SegmentError


def partition_of(stream_id: str, partitions: int) -> int:
    """murmur2 of the key's UTF-8 bytes over the number of partitions, as Kafka's own clients do."""
    return (int(murmur2(stream_id.encode())) & 0x7FFFFFFF) % partitions


def check_partition(stream_id: str, partition: int, partitions: int) -> None:
    """A record without a key is spread at random, and a stream on two partitions would have two
    memories. Raises SegmentError("wrong_partition") unless it is where its key would have put it."""
    right = partition_of(stream_id, partitions)
    if right != partition:
        raise SegmentError(
            "wrong_partition",
            f"the record has no key and lies on partition {partition}, but its stream belongs on "
            f"partition {right} of {partitions}: send the stream_id as the record's key",
        )
