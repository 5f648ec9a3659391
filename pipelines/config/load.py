"""Every setting of longstream: one frozen object, read once at start and passed down.

A value comes from the first of: command line, environment (``LONGSTREAM_`` + name, nested with two
underscores: ``LONGSTREAM_OPERATOR__WINDOW=2048``), a TOML or YAML file (``--config`` or
``LONGSTREAM_CONFIG``), the default in :mod:`pipelines.config.fields`. Unknown names are refused
wherever they stand: a misspelt setting that is silently ignored is worse than none. Nothing else
reads the environment, except the broker and the model store to find programs and folders.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import os
import re
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import yaml
from pydantic import SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from operators.config import OperatorConfig
from operators.errors import ConfigError
from pipelines.config.fields import OPERATOR_FIELDS, Settings

__all__ = [
    "SettingRow",
    "SettingValue",
    "Settings",
    "default_values",
    "describe",
    "environment_name",
    "explain",
    "load_settings",
]

PREFIX = "LONGSTREAM_"
OTHER_NAMES = ("LONGSTREAM_CONFIG", "LONGSTREAM_REQUIRE_KAFKA", "LONGSTREAM_REQUIRE_PROMTOOL")
"""Environment names with our prefix that are not settings; so is LONGSTREAM_TEST_…"""
_UNSHOWN = (
    *("snapshot_url", "offload_url", "http_token", "sasl_password", "bootstrap"),
    *("input_schema_registry", "input_schema_registry_password"),
    *("server_url", "server_key", "server_extra"),
)
_LINK_NAME = re.compile(r"_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?$")
_LINK_URL = re.compile(r"(tcp|udp|sctp)://.+")
_MISSING = object()


def load_settings(config: str | Path | None = None, **overrides: Any) -> Settings:
    """The settings of this process. ``overrides`` (command line) win; None in them means not given.

    ``operator`` in ``overrides`` may be a dict of some of its fields. Raises ``ConfigError`` with
    one line per wrong setting, naming it and where it was set.
    """
    return _settings(_layers(config, overrides))


class SettingValue(NamedTuple):
    """A setting in force. ``value`` is what JSON has for it, a secret's is masked; ``source`` is
    "default", "command line", a variable of the environment, or the file."""

    name: str
    value: Any
    source: str


def explain(config: str | Path | None = None, **overrides: Any) -> list[SettingValue]:
    """Every setting in force, and where it was set, in the order of :func:`describe`.

    Raises ``ConfigError`` as :func:`load_settings` does.
    """
    layers = _layers(config, overrides)
    settings = _settings(layers)
    values = _flat(settings)
    rows = []
    for row in describe():
        path = tuple(row.name.split("."))
        source, _ = _origin(path, layers)
        if source == "default" and row.type == "secret" and values[row.name] is not None:
            source = f"{row.name}_file"
        rows.append(SettingValue(row.name, values[row.name], source))
    return rows


def default_values() -> dict[str, Any]:
    """Name -> default as JSON has it; None for "not set", and for what depends on the machine."""
    values = _flat(_settings({}))
    of_machine = {name for name, info in Settings.model_fields.items() if info.default_factory}
    shown = {row.name: row.default for row in describe()}
    return {
        name: None if name in of_machine else shown[name] if name == "cache" else value
        for name, value in values.items()
    }


def _flat(settings: Settings) -> dict[str, Any]:
    """All values by the names of :func:`describe`; pydantic masks secrets."""
    values = settings.model_dump(mode="json", exclude={"operator"})
    engine = settings.operator.to_dict()
    return values | {f"operator.{name}": value for name, value in engine.items()}


def _layers(config: str | Path | None, overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Where settings come from, in order of precedence."""
    path = config or os.environ.get("LONGSTREAM_CONFIG") or None
    layers = {
        "command line": {k: v for k, v in overrides.items() if v is not None},
        "environment": _environment(),
    }
    if path:
        layers[str(path)] = read_config_file(Path(path))
    return layers


def _settings(layers: Mapping[str, dict[str, Any]]) -> Settings:
    merged: dict[str, Any] = {}
    for layer in reversed(list(layers.values())):
        merged = _merge(merged, layer)
    try:
        return Settings(**merged)
    except ValidationError as error:
        # "from None": the original's text would be one more place where values are printed.
        raise ConfigError(_sentences(error, layers)) from None
    except ConfigError as error:  # raised by the engine's own settings object
        raise ConfigError(f"operator.{error}") from None


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings in a .toml, .yaml or .yml file. Raises ``ConfigError``."""
    if path.suffix not in (".toml", ".yaml", ".yml"):
        raise ConfigError(f"config file {path}: the name must end in .toml, .yaml or .yml")
    try:
        text = path.read_text()
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config file {path}: not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config file {path}: {error}") from None
    except yaml.MarkedYAMLError as error:  # its own text quotes the line, which may be a password
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"config file {path}: line {line}: {error.problem}") from None
    except yaml.YAMLError:
        raise ConfigError(f"config file {path}: not YAML") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"config file {path}: expected names with values, one per line")
    return values


def environment_name(*names: str) -> str:
    """``("operator", "window")`` as ``LONGSTREAM_OPERATOR__WINDOW``."""
    return PREFIX + "__".join(names).upper()


def _environment() -> dict[str, Any]:
    """The settings in the environment, as strings. Raises ``ConfigError`` for unknown names."""
    links = {name for name, value in os.environ.items() if is_service_link(name, value)}
    _refuse_unknown_names(name for name in os.environ if name not in links)
    source = EnvSettingsSource(Settings)
    lowered = {name.lower() for name in links}
    source.env_vars = {n: v for n, v in source.env_vars.items() if n.lower() not in lowered}
    try:
        return source()
    except SettingsError as error:
        raise ConfigError(f"environment: {error}") from None


def is_service_link(name: str, value: str) -> bool:
    """Whether a variable describes a service of Kubernetes (or a container that Docker links): every pod
    is given those of all services of its namespace, and one named longstream… has our prefix."""
    name = name.upper()
    if not name.startswith(PREFIX):
        return False
    return bool(_LINK_NAME.search(name)) or bool(
        name.endswith("_PORT") and _LINK_URL.fullmatch(value)
    )


def _refuse_unknown_names(environ: Iterable[str]) -> None:
    known = {environment_name(name) for name in Settings.model_fields if name != "operator"}
    known |= {environment_name("operator", name) for name in OPERATOR_FIELDS}
    known |= set(OTHER_NAMES)
    prompts = environment_name("operator", "prompts", "")
    for name in map(str.upper, environ):
        if not name.startswith(PREFIX) or name in known:
            continue
        if not name.startswith((prompts, f"{PREFIX}TEST_")):
            raise ConfigError(f"environment: unknown setting {name}{_guess(name, known)}")


def _guess(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else "; `longstream worker --help` lists them all"


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, nested dictionaries name by name; neither is changed."""
    merged = dict(below)
    for name, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            value = _merge(merged[name], value)
        merged[name] = value
    return merged


# --- errors as sentences ---------------------------------------------------------------------


def _sentences(error: ValidationError, layers: Mapping[str, dict[str, Any]]) -> str:
    lines = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        path = tuple(str(part) for part in item["loc"])
        name = ".".join(path)
        message = item["msg"].removeprefix("Value error, ")
        if not path:
            lines.append(message)
        elif item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            where, _ = _origin(path, layers)
            known = [*Settings.model_fields, *(f"operator.{name}" for name in OPERATOR_FIELDS)]
            lines.append(f"{where}: unknown setting {name}{_guess(name, known)}")
        else:
            where, value = _origin(path, layers)
            shown = f"={value!r}" if _may_show(path, value) else ""
            lines.append(f"{name}{shown} ({where}): {message}")
    return "\n".join(lines)


def _origin(path: tuple[str, ...], layers: Mapping[str, dict[str, Any]]) -> tuple[str, object]:
    """Which layer set the value at ``path``, and the value; layers are in order of precedence."""
    for where, layer in layers.items():
        value = _find(path, layer)
        if value is not _MISSING:
            return (environment_name(*path[:2]) if where == "environment" else where), value
    return "default", None


def _find(path: tuple[str, ...], layer: Mapping[str, Any]) -> object:
    """The value at ``path``, or the first one on the way that is no dictionary."""
    value: object = layer
    for name in path:
        if not isinstance(value, dict):
            break
        if name not in value:
            return _MISSING
        value = value[name]
    return value


def _may_show(path: tuple[str, ...], value: object) -> bool:
    short = isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 80)
    return short and path[0] not in _UNSHOWN


# --- the list of all settings ------------------------------------------------------------------


class SettingRow(NamedTuple):
    """One line of ``longstream worker --help``; all are texts for people."""

    name: str
    env: str
    type: str
    default: str
    description: str


def describe() -> list[SettingRow]:
    """Every setting, the engine's as ``operator.…`` at the end."""
    rows = []
    # A base class's fields come first in a model: the worker's own are what is looked for.
    fields = sorted(
        Settings.model_fields.items(), key=lambda field: field[0].startswith("gateway_")
    )
    for name, info in fields:
        if name == "operator":
            continue
        default = "" if info.default_factory else _text(info.default)
        kind, doc = _type_name(info.annotation), info.description or ""
        rows.append(SettingRow(name, environment_name(name), kind, default, doc))
    docs = _attribute_docs(OperatorConfig)
    hints = get_type_hints(OperatorConfig)
    for name, value in OperatorConfig().to_dict().items():
        env = environment_name("operator", name)
        rows.append(
            SettingRow(f"operator.{name}", env, _type_name(hints[name]), _text(value), docs[name])
        )
    return rows


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if value is None or value == {} else str(value)


def _type_name(annotation: object) -> str:
    """A type as people say it: "int", "plain | json", "path"."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    args = [arg for arg in get_args(annotation) if arg not in (type(None), ...)]
    if get_origin(annotation) is tuple:
        return "comma-separated list"
    if get_origin(annotation) is dict:
        return "names and texts"
    names = {str: "text", Path: "path", SecretStr: "secret", float: "number"}
    return " | ".join(
        names.get(arg, getattr(arg, "__name__", str(arg))) for arg in args or [annotation]
    )


def _attribute_docs(cls: type) -> dict[str, str]:
    """The string under each field of a class, on one line ("" where there is none)."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    docs = {}
    for node, after in itertools.pairwise([*body, None]):
        if isinstance(node, ast.AnnAssign):
            doc = ast.literal_eval(after.value) if isinstance(after, ast.Expr) else ""
            docs[ast.unparse(node.target)] = " ".join(doc.split())
    return docs
