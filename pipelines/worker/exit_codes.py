"""The exit codes of a worker and the errors they stand for."""

from __future__ import annotations

from aiokafka.errors import KafkaError

from operators.errors import ConfigError, DeviceError, ModelError
from pipelines.kafka.errors import DENIALS, MISFITS, BrokerUnavailable, causes

OK, FAULT, CONFIG, MODEL, DEVICE, BROKER, DENIED = range(7)

MEANINGS = {
    OK: "stopped as asked; what was finished is committed",
    FAULT: "a fault of longstream itself; the log says where",
    CONFIG: "a setting is wrong, or a topic is missing or too small for what is written to it",
    MODEL: "the model is missing, corrupt, or cannot be run exactly",
    DEVICE: "the model's process kept failing (killed, hung, out of memory)",
    BROKER: "Kafka did not answer, or did not take the results, for broker_patience_s",
    DENIED: "Kafka refused the login, or an access (ACL)",
}

_CODES: tuple[tuple[tuple[type[BaseException], ...], int], ...] = (
    (DENIALS, DENIED),
    ((*MISFITS, ConfigError), CONFIG),
    ((ModelError,), MODEL),
    ((DeviceError,), DEVICE),
    ((BrokerUnavailable, KafkaError), BROKER),
)


def code_of(error: BaseException) -> int:
    """The exit code for what ended a worker: the most telling of the error and its causes."""
    chain = list(causes(error))
    for kinds, code in _CODES:
        if any(isinstance(cause, kinds) for cause in chain):
            return code
    return FAULT


def explained() -> str:
    """The exit codes for ``--help``."""
    lines = [f"{code}  {meaning}" for code, meaning in MEANINGS.items()]
    return "Exit codes:\n\n" + "\n\n".join(lines)
