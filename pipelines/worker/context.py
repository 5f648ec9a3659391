"""What all partitions of a worker share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from operators.events import Segment
from operators.state import SessionState
from pipelines.config.load import Settings
from pipelines.kafka.publishers import Publisher
from pipelines.observability.metrics import Metrics
from pipelines.wire.decoding import NO_SCHEMAS
from pipelines.wire.schema_registry import Schemas
from pipelines.worker.partition.queues import Lane
from pipelines.worker.partition.quotas import Tenants

if TYPE_CHECKING:
    from pipelines.worker.partition.partition import Partition


class DeviceLike(Protocol):
    """What a partition needs of :class:`pipelines.device.client.DeviceClient`."""

    def open(self, stream_id: str, state: SessionState | None = None) -> None: ...
    def feed(self, segment: Segment, ticket: int, read_at: float = 0.0) -> None: ...
    def drop(self, stream_id: str, erase: bool = False) -> asyncio.Future[None]: ...


@dataclass
class Host:
    """Made by :class:`pipelines.worker.app.Worker`."""

    settings: Settings
    metrics: Metrics
    device: DeviceLike
    owners: dict[str, Partition]
    """Which partition each open stream belongs to: emissions find their way by it."""
    hold: Callable[[int], None]
    release: Callable[[int], None]
    recover: Callable[[int], Any]
    """Partition number -> awaitable Recovered."""
    make_publisher: Callable[[int], Publisher]
    on_progress: Callable[[], None] = lambda: None
    schemas: Schemas = NO_SCHEMAS
    """Avro schemas of the input, shared by the partitions."""
    partition_count: Callable[[], int | None] = lambda: None
    """How many partitions the input topic has; None: not known."""
    tenants: Tenants = field(init=False)
    admits: Callable[[Lane], bool] = lambda lane: True
    """Whether a lane may have the device now (:mod:`pipelines.worker.supervisor`)."""
    settled: Callable[[bool], None] = lambda finished: None
    """Told after the device said something of a lane; True when a segment was done."""

    def __post_init__(self) -> None:
        self.tenants = Tenants(self.settings, self.owners, self.metrics.tenant_limited)
