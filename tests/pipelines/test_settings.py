"""Where settings come from, what is refused, and what is never shown."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from operators.config import OperatorConfig
from operators.errors import ConfigError
from pipelines.config.load import Settings, describe, environment_name, load_settings

SECRET = "correct-horse"
LOGIN = {"security_protocol": "SASL_SSL", "sasl_username": "ana"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("LONGSTREAM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Write a config file: ``file("x.toml", text) -> path``."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(*args, **kwargs)
    return str(caught.value)


# --- sources ---------------------------------------------------------------------------------


def test_defaults() -> None:
    settings = load_settings()
    assert settings.bootstrap == "127.0.0.1:9092"
    assert settings.http_host == "127.0.0.1"
    assert settings.worker == socket.gethostname()
    assert settings.cache == Path.home() / ".cache" / "longstream"
    assert 1 <= settings.threads <= 16
    assert settings.operator_config() == OperatorConfig()
    assert settings.topics[0] == "transcripts.segments.v1"


def test_command_line_over_environment_over_file_over_default(
    monkeypatch: pytest.MonkeyPatch, file: Any
) -> None:
    path = file("x.toml", "partitions = 1\nin_flight_per_partition = 11\nhttp_port = 1111\n")
    monkeypatch.setenv("LONGSTREAM_PARTITIONS", "2")
    monkeypatch.setenv("LONGSTREAM_IN_FLIGHT_PER_PARTITION", "22")
    settings = load_settings(path, partitions=3, http_port=None)
    assert settings.partitions == 3
    assert settings.in_flight_per_partition == 22
    assert settings.http_port == 1111
    assert settings.commit_max_events == 256


def test_operator_fields_mix_from_all_sources(monkeypatch: pytest.MonkeyPatch, file: Any) -> None:
    path = file("x.yaml", "operator:\n  window: 2000\n  slots: 3\n  targets: [fr]\n")
    monkeypatch.setenv("LONGSTREAM_OPERATOR__WINDOW", "3000")
    config = load_settings(path, operator={"slack": 64}).operator_config()
    assert config == OperatorConfig(window=3000, slots=3, slack=64, targets=("fr",))


@pytest.mark.parametrize("text", ["fr,de", " fr , de, "])
def test_targets_from_the_environment(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LONGSTREAM_OPERATOR__TARGETS", text)
    assert load_settings().operator.targets == ("fr", "de")


def test_prompts_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSTREAM_OPERATOR__PROMPTS__SUMMARY", "Sum up.")
    assert load_settings().operator.prompts == {"summary": "Sum up."}
    monkeypatch.delenv("LONGSTREAM_OPERATOR__PROMPTS__SUMMARY")
    monkeypatch.setenv("LONGSTREAM_OPERATOR__PROMPTS", '{"summary": "Sum up."}')
    assert load_settings().operator.prompts == {"summary": "Sum up."}
    monkeypatch.setenv("LONGSTREAM_OPERATOR__PROMPTS", "Sum up.")
    assert "expected a JSON object" in refusal()


def test_config_file_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, file: Any) -> None:
    monkeypatch.setenv("LONGSTREAM_CONFIG", str(file("x.yml", "partitions: 9\n")))
    assert load_settings().partitions == 9


def test_empty_variable_and_empty_file_mean_not_set(
    monkeypatch: pytest.MonkeyPatch, file: Any
) -> None:
    monkeypatch.setenv("LONGSTREAM_PARTITIONS", "")
    assert load_settings(file("x.yaml", "# nothing\n")).partitions == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LONGSTREAM_SERVICE_HOST", "10.0.0.7"),
        ("LONGSTREAM_SERVICE_PORT", "6066"),
        ("LONGSTREAM_SERVICE_PORT_METRICS", "6066"),
        ("LONGSTREAM_PORT", "tcp://10.0.0.7:6066"),
        ("LONGSTREAM_PORT_6066_TCP", "tcp://10.0.0.7:6066"),
        ("LONGSTREAM_PORT_6066_TCP_ADDR", "10.0.0.7"),
        ("LONGSTREAM_WORKER_SERVICE_HOST", "10.0.0.7"),
        ("LONGSTREAM_WORKER_PORT_53_UDP_PROTO", "udp"),
        ("LONGSTREAM_HTTP_PORT", "tcp://10.0.0.7:6066"),  # of a service "longstream-http"
    ],
)
def test_service_links_are_no_settings(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Kubernetes sets them in every pod: a service named longstream ended each worker with exit 2."""
    monkeypatch.setenv(name, value)
    assert load_settings() == load_settings(http_port=6066)


@pytest.mark.parametrize("name", ["LONGSTREAM_PORTS", "LONGSTREAM_SERVICE", "LONGSTREAM_HTTPPORT"])
def test_what_is_no_service_link_is_still_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "x")
    assert refusal().startswith(f"environment: unknown setting {name}")


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("security_protocol", "ssl", "SSL"),
        ("delivery", "At_Least_Once", "at_least_once"),
        ("log_format", "JSON", "json"),
        ("compression", "ZSTD", "zstd"),
        ("topic_segments", "a.b_c", "a.b_c"),
        ("snapshot_url", "abfs://c@account.dfs.core.windows.net/x", None),
        ("snapshot_url", "az://container/with spaces/x", None),
        ("offload_url", "s3://bucket_with.dots-and_more/x", None),
        ("bootstrap", "kafka_1.internal:9092,[::1]:9093", None),
        ("stream_idle_timeout_s", "0", 0.0),
    ],
)
def test_what_is_valid_is_taken(name: str, given: str, taken: object) -> None:
    settings = load_settings(None, **{name: given})
    assert getattr(settings, name) == (given if taken is None else taken)


def test_constructor_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSTREAM_PARTITIONS", "9")
    assert Settings().partitions == 4


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().partitions = 5  # type: ignore[misc]


# --- unknown names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("LONGSTREAM_PARTITION", "LONGSTREAM_PARTITIONS"),
        ("LONGSTREAM_OPERATOR__WINDO", "LONGSTREAM_OPERATOR__WINDOW"),
        ("LONGSTREAM_OPERATOR_WINDOW", "LONGSTREAM_OPERATOR__WINDOW"),
    ],
)
def test_unknown_environment_name(monkeypatch: pytest.MonkeyPatch, name: str, guess: str) -> None:
    monkeypatch.setenv(name, "1")
    assert refusal() == f"environment: unknown setting {name}; did you mean {guess}?"


@pytest.mark.parametrize("name", ["LONGSTREAM_REQUIRE_KAFKA", "LONGSTREAM_TEST_SEED"])
def test_names_that_are_not_settings_pass(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert load_settings() == Settings()


def test_unknown_names_in_a_file(file: Any) -> None:
    path = file("x.toml", f"sasl_pasword = '{SECRET}'\nzzz = 1\n[operator]\nwindw = 3\n")
    assert refusal(path).splitlines() == [
        f"{path}: unknown setting operator.windw; did you mean operator.window?",
        f"{path}: unknown setting sasl_pasword; did you mean sasl_password?",
        f"{path}: unknown setting zzz; `longstream worker --help` lists them all",
    ]


# --- wrong values ----------------------------------------------------------------------------


def test_every_wrong_value_gets_its_sentence_and_place(
    monkeypatch: pytest.MonkeyPatch, file: Any
) -> None:
    monkeypatch.setenv("LONGSTREAM_OPERATOR__WINDOW", "wide")
    path = file("x.toml", "partitions = 0\n")
    lines = refusal(path, device="tpu").splitlines()
    assert lines == [
        f"partitions=0 ({path}): Input should be greater than or equal to 1",
        "device='tpu' (command line): expected auto, cpu, cuda, cuda:N or mps",
        "operator.window='wide' (LONGSTREAM_OPERATOR__WINDOW): Input should be a valid integer, "
        "unable to parse string as an integer",
    ]


WRONG = {
    "engine rule": ({"operator": {"window": 8}}, "operator.window=8: at least 16 tokens"),
    "language": (
        {"operator": {"targets": "fr,xx"}},
        "operator.targets: unknown language code 'xx'",
    ),
    "not a mapping": ({"operator": 3}, "operator=3 (command line): Input should be a dictionary"),
    "login in address": ({"bootstrap": f"u:{SECRET}@h:1"}, 'expected "host:port"'),
    "no port": ({"bootstrap": "localhost"}, 'expected "host:port"'),
    "empty server": ({"bootstrap": "a:1,,b:2"}, 'expected "host:port"'),
    "topic characters": ({"topic_dlq": "a b"}, "a topic name has 1 to 249 of"),
    "same topic": ({"topic_dlq": "insights.sessions.v1"}, "name the same topic"),
    "per key": ({"in_flight_per_key": 513}, "must not exceed in_flight_per_partition"),
    "queue": ({"operator": {"max_queue": 7}}, "must not exceed operator.max_queue"),
    "text": ({"max_message_bytes": 262_144}, "must be below max_message_bytes"),
    "delivery": ({"delivery": "maybe"}, "'exactly_once' or 'at_least_once'"),
    "session timeout": ({"session_timeout_s": 5}, "greater than or equal to 6"),
    "infinite": ({"commit_interval_s": float("inf")}, "less than or equal to 60"),
    "no login": ({"security_protocol": "SASL_SSL"}, "needs sasl_username and sasl_password_file"),
    "unused login": ({"sasl_password": SECRET}, "a login is set but not used"),
    "no such ca": ({"ssl_cafile": "/no/such"}, "ssl_cafile: no such file: /no/such"),
    "no such password": ({**LOGIN, "sasl_password_file": "/no/such"}, "cannot read /no/such"),
    "secret type": ({**LOGIN, "sasl_password": [SECRET]}, "sasl_password (command line): Input"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_value(case: str) -> None:
    values, sentence = WRONG[case]
    message = refusal(**values)
    assert sentence in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("x.ini", "", "must end in .toml, .yaml or .yml"),
        ("x.toml", f"sasl_password = '{SECRET}\n", "x.toml: Expected"),
        ("x.yaml", f"sasl_password: '{SECRET}\n", "x.yaml: line 2: found unexpected end"),
        ("x.yaml", f"{SECRET}: [\n", "x.yaml: line 2: expected the node content"),
        ("x.yaml", f"a: \x07{SECRET}", "x.yaml: not YAML"),
        ("x.yaml", "- partitions\n", "x.yaml: expected names with values"),
        ("x.yaml", "1: 2\n", "x.yaml: expected names with values"),
        ("x.yaml", "!!python/object/apply:os.getcwd []\n", "x.yaml: line 1: could not determine"),
    ],
)
def test_unreadable_file(file: Any, name: str, text: str, sentence: str) -> None:
    message = refusal(file(name, text))
    assert sentence in message
    assert SECRET not in message


def test_missing_and_binary_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refusal(tmp_path / "x.toml")


# --- secrets ---------------------------------------------------------------------------------


def test_password_is_never_shown() -> None:
    settings = load_settings(**LOGIN, sasl_password=SECRET)
    assert settings.sasl_password is not None
    assert settings.sasl_password.get_secret_value() == SECRET
    for shown in (repr(settings), str(settings), str(settings.model_dump()), str(describe())):
        assert SECRET not in shown
    assert SECRET not in settings.model_dump_json()


def test_password_is_never_in_an_error() -> None:
    message = refusal(**LOGIN, sasl_password=SECRET, partitions="four", topic_dlq="a.b_c")
    assert "partitions='four'" in message
    assert SECRET not in message
    with pytest.raises(ValidationError) as caught:
        Settings(**LOGIN, sasl_password=SecretStr(SECRET), partitions=0)
    assert SECRET not in str(caught.value)


def test_password_from_a_file(file: Any) -> None:
    path = file("password", f"{SECRET}\n")
    settings = load_settings(**LOGIN, sasl_password_file=path)
    assert settings.sasl_password is not None
    assert settings.sasl_password.get_secret_value() == SECRET
    both = refusal(**LOGIN, sasl_password_file=path, sasl_password=SECRET)
    assert both == "set sasl_password or sasl_password_file, not both"


# --- the list of all settings, and round trips -------------------------------------------------


def test_describe_lists_every_setting_once_with_a_sentence() -> None:
    rows = describe()
    names = [row.name for row in rows]
    engine = [f"operator.{field.name}" for field in dataclasses.fields(OperatorConfig)]
    own = [name for name in Settings.model_fields if name != "operator"]
    assert sorted(names) == sorted(own + engine)
    assert names[-len(engine) :] == engine
    by_name = {row.name: row for row in rows}
    assert by_name["delivery"] == (
        "delivery",
        "LONGSTREAM_DELIVERY",
        "exactly_once | at_least_once",
        "exactly_once",
        "exactly_once needs a broker with transactions.",
    )
    assert by_name["operator.window"].default == "1024"
    assert by_name["operator.window"].description.startswith("W: how many transcript tokens")
    assert by_name["sasl_password"].type == "secret"
    assert by_name["cache"].default == "~/.cache/longstream"
    assert not [
        row.name for row in rows if row.name in Settings.model_fields and not row.description
    ]


def test_every_described_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting each variable to its documented default changes nothing and is not refused."""
    for row in describe():
        monkeypatch.setenv(row.env, row.default)
    assert load_settings() == Settings()


TARGETS = st.lists(st.sampled_from(["ar", "de", "fr-CA", "sr-Latn", "zh-Hant"]), max_size=4).map(
    tuple
)


@given(
    window=st.integers(16, 10**6),
    update=st.floats(0, 1e6),
    targets=TARGETS,
    partitions=st.integers(1, 10_000),
)
def test_values_survive_the_environment(
    window: int, update: float, targets: tuple[str, ...], partitions: int
) -> None:
    config = OperatorConfig(
        window=window, update_tokens=1, update_interval_s=update, targets=targets
    )
    texts = {
        environment_name("operator", "window"): str(window),
        environment_name("operator", "update_tokens"): "1",
        environment_name("operator", "update_interval_s"): repr(update),
        environment_name("operator", "targets"): ",".join(targets),
        environment_name("partitions"): str(partitions),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, text in texts.items():
            patch.setenv(name, text)
        assert load_settings() == Settings(operator=config, partitions=partitions)


@given(
    st.dictionaries(
        st.sampled_from([*Settings.model_fields]), st.text() | st.integers(), max_size=4
    )
)
def test_any_values_give_settings_or_a_config_error(values: dict[str, Any]) -> None:
    try:
        assert load_settings(**values).partitions >= 1
    except ConfigError as error:
        message = str(error)
    else:
        message = "fine"
    assert message


def test_the_pages_token_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("hunter2\n")
    settings = load_settings(None, http_token_file=str(file))
    assert settings.http_token is not None
    assert settings.http_token.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)
    with pytest.raises(ConfigError, match="not both") as refused:
        load_settings(None, http_token_file=str(file), http_token="hunter3")
    assert "hunter3" not in str(refused.value)
