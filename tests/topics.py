"""Topic names of one test alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelines.kafka.topics import DEFAULT_PARTITIONS, TOPICS, TopicSpec, create_topics


@dataclass(frozen=True)
class Topics:
    """Names nobody else uses: those of the defaults behind ``prefix``. Not created yet."""

    bootstrap: str
    prefix: str

    def name(self, default: str) -> str:
        """``transcripts.segments.v1`` as this test has to call it."""
        assert default in {spec.name for spec in TOPICS}, f"no such topic: {default}"
        return self.prefix + default

    @property
    def segments(self) -> str:
        return self.name("transcripts.segments.v1")

    @property
    def summaries(self) -> str:
        return self.name("insights.summaries.v1")

    @property
    def latest(self) -> str:
        return self.name("insights.summaries.latest.v1")

    @property
    def translations(self) -> str:
        return self.name("insights.translations.v1")

    @property
    def questions(self) -> str:
        return self.name("insights.questions.v1")

    @property
    def answers(self) -> str:
        return self.name("insights.answers.v1")

    @property
    def sessions(self) -> str:
        return self.name("insights.sessions.v1")

    @property
    def dlq(self) -> str:
        return self.name("insights.dlq.v1")

    @property
    def specs(self) -> list[TopicSpec]:
        return [replace(spec, name=self.prefix + spec.name) for spec in TOPICS]

    def create(self, partitions: int = DEFAULT_PARTITIONS) -> Topics:
        """Create all of them on the broker; returns self."""
        create_topics(self.bootstrap, self.specs, partitions)
        return self
