#!/bin/sh
# Creates longstream's topics where they do not exist yet; run by the compose file in the Kafka image.
# The same topics, policies and limits as pipelines/kafka/topics.py (a test compares them).
set -eu

: "${KAFKA_BIN:=/opt/kafka/bin}" "${BOOTSTRAP:?host:port of a broker}"
: "${PARTITIONS:=4}" "${REPLICATION:=1}" "${MAX_MESSAGE_BYTES:=8388608}"

# create TOPIC SETTING=VALUE...
create() {
    topic=$1
    shift
    options="--config max.message.bytes=$MAX_MESSAGE_BYTES"
    for setting in "$@"; do
        options="$options --config $setting"
    done
    # shellcheck disable=SC2086 # the options are to be split into words
    "$KAFKA_BIN/kafka-topics.sh" --bootstrap-server "$BOOTSTRAP" --create --if-not-exists \
        --topic "$topic" --partitions "$PARTITIONS" --replication-factor "$REPLICATION" $options
}

# Of a compacted topic only closed files are compacted; without segment.ms one stays open for a week.
create transcripts.segments.v1 cleanup.policy=delete
create insights.summaries.v1 cleanup.policy=delete
create insights.summaries.latest.v1 \
    cleanup.policy=compact segment.ms=3600000 min.cleanable.dirty.ratio=0.1 \
    max.compaction.lag.ms=86400000
create insights.translations.v1 cleanup.policy=delete
create insights.sessions.v1 \
    cleanup.policy=compact segment.ms=3600000 min.cleanable.dirty.ratio=0.1 \
    max.compaction.lag.ms=86400000
create insights.dlq.v1 cleanup.policy=delete retention.ms=2592000000
