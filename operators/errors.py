"""The exceptions longstream raises on purpose.

LongstreamError
├── ConfigError          a setting is wrong; the message says which and what would be right
├── ModelError           the model cannot be loaded or cannot be run exactly
├── SegmentError         one input segment is refused; the stream continues (dead letter)
├── CapacityError        no slot or branch region is free; the caller has to wait
├── SnapshotError        a snapshot is torn or was made by something else; re-prefill instead
└── DeviceError          the device process died, hung or failed; nothing unacknowledged is done
"""


class LongstreamError(Exception):
    """Base of every error longstream raises on purpose."""


class ConfigError(LongstreamError):
    """A setting is wrong. The message names it and says what would be right."""


class ModelError(LongstreamError):
    """The model cannot be fetched, verified, loaded or run exactly."""


class SegmentError(LongstreamError):
    """One input segment is refused; the stream itself continues.

    ``reason`` is a short stable word used as a metric label and dead-letter header.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CapacityError(LongstreamError):
    """No slot or branch region is free. Wait for one; nothing was changed."""


class DeviceError(LongstreamError):
    """The device process died, hung or reported a fault it could not recover from."""


class SnapshotError(LongstreamError):
    """A snapshot is torn, altered, or made with another model, type or size. Nothing was changed."""
