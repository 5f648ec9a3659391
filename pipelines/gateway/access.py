"""Who may see and do what: bearer tokens, or the tenants a proxy names, or this machine's own user.

Without tokens and without a proxy everything is open, and the gateway then listens on loopback only.
Browsers of that machine are the danger there: a page from elsewhere could send them to it. A host name
that is not ours is refused (DNS rebinding), and so is a change that another site's page asks for.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from operators.errors import ConfigError
from pipelines.config.fields import Settings

ALL = "*"
MAX_TENANTS = 100


@dataclass(frozen=True)
class Caller:
    """``name`` tells callers apart for limits, without holding a secret."""

    name: str
    tenants: frozenset[str]
    may_write: bool = True

    def sees(self, tenant: str | None) -> bool:
        return ALL in self.tenants or (tenant is not None and tenant in self.tenants)

    def writes_as(self, asked: str | None) -> str | None:
        """The tenant of what the caller writes: the one asked for, else its only one.

        Raises PermissionError for a tenant that is not its own, or none where it has several.
        """
        if ALL in self.tenants:
            return asked
        if asked is None and len(self.tenants) == 1:
            return next(iter(self.tenants))
        if asked is None or asked not in self.tenants:
            raise PermissionError("say one of your own tenants as `tenant`")
        return asked


class Refused(Exception):
    """No access: an HTTP status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Access:
    """Raises ConfigError where the settings would open the gateway to strangers."""

    def __init__(self, settings: Settings) -> None:
        path = settings.gateway_tokens_file
        self._tokens = read_tokens(path) if path else {}
        self._header = settings.gateway_tenant_header
        self._proxies = settings.gateway_proxy_list
        self._hosts = settings.gateway_host_list
        self._origins = settings.gateway_origin_list
        self.open = not self._tokens and not self._header
        if self.open and not is_loopback(settings.gateway_host):
            raise ConfigError(
                f"gateway_host {settings.gateway_host} can be reached by others: set "
                "gateway_tokens_file or gateway_tenant_header, or serve on 127.0.0.1"
            )

    def caller(self, headers: Mapping[str, str], address: str) -> Caller:
        """Who asks. ``headers``: by lower-case name. Raises Refused."""
        if self.open:
            self._check_host(headers)
            return Caller(address, frozenset({ALL}))
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and (found := self._by_token(token.strip())) is not None:
            return found
        if self._header and address in self._proxies and (said := headers.get(self._header)):
            tenants = [name.strip() for name in said.split(",")][:MAX_TENANTS]
            # A proxy's word is a list of names: the one that means "all" is nobody's group.
            allowed = frozenset(name for name in tenants if name and name != ALL)
            if allowed:
                return Caller("proxy:" + _digest(said)[:16], allowed)
        raise Refused(401, "this wants Authorization: Bearer <token>")

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """A browser says where a page comes from; another site's may not change anything, nor open a
        socket. Raises Refused."""
        if (origin := headers.get("origin")) is None:
            return
        host = headers.get("host", "")
        if origin.partition("://")[2] != host and origin.lower() not in self._origins:
            raise Refused(403, "another site's page may not do this")

    def _by_token(self, token: str) -> Caller | None:
        digest, found = _digest(token), None
        for known, caller in self._tokens.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def _check_host(self, headers: Mapping[str, str]) -> None:
        name = headers.get("host", "").lower()
        name = name.rpartition(":")[0] if not name.endswith("]") and ":" in name else name
        if not (name == "localhost" or is_loopback(name.strip("[]")) or name in self._hosts):
            raise Refused(421, "unknown host name; gateway_hosts lists those that are served")


def read_tokens(path: Path) -> dict[str, Caller]:
    """Digest of each token -> caller. Raises ConfigError, which never quotes a line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"gateway_tokens_file: cannot read {path}") from error
    tokens: dict[str, Caller] = {}
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] != "read"):
            raise ConfigError(f"{path}: line {number}: expected TOKEN TENANT[,TENANT] [read]")
        token, names = parts[0], frozenset(filter(None, parts[1].split(",")))
        digest = token.removeprefix("sha256:").lower()
        if digest == token.lower():
            if len(token) < 16:
                raise ConfigError(f"{path}: line {number}: a token has 16 characters at least")
            digest = _digest(token)
        tokens[digest] = Caller(f"token:{digest[:16]}", names, len(parts) == 2)
    if not tokens:
        raise ConfigError(f"{path}: no token in it")
    return tokens


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
