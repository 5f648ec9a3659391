"""Settings of ``longstream gateway``, part of :class:`~pipelines.config.fields.Settings`."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_HEADER = re.compile(r"[A-Za-z0-9-]{0,100}")
_ORIGIN = re.compile(r"https?://[^\s/,]+")


class GatewaySettings(BaseSettings):
    """Every one is bounded, and the defaults serve one machine's own user only."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    gateway_host: str = Field("127.0.0.1", min_length=1)
    """Address of the gateway. Any other than this machine's own needs gateway_tokens_file or
    gateway_tenant_header."""
    gateway_port: int = Field(8080, ge=0, le=65535)
    """Port of the gateway; 0 takes a free one."""
    gateway_tokens_file: Path | None = None
    """File with a line per bearer token: `TOKEN TENANT[,TENANT] [read]`; * is every tenant. Instead of
    the token it may hold sha256: and its hexadecimal digest."""
    gateway_tenant_header: str = ""
    """Header in which a proxy that knows its users (OIDC) says their tenants, commas between."""
    gateway_proxies: str = "127.0.0.1,::1"
    """Addresses whose gateway_tenant_header is believed."""
    gateway_hosts: str = ""
    """Names under which browsers may reach it without a login, besides localhost."""
    gateway_origins: str = ""
    """Other sites (https://host) whose pages may call it (CORS); empty: none."""
    gateway_history_h: float = Field(24.0, gt=0, le=24 * 365)
    """Hours of transcript, translations and answers that are read back from Kafka at its start."""
    gateway_max_streams: int = Field(2000, ge=1)
    """Streams kept in memory; beyond it those without news for longest are dropped."""
    gateway_max_segments: int = Field(2000, ge=10)
    """Segments of one stream kept in memory, and translations per language."""
    gateway_max_mib: int = Field(512, ge=8)
    """MiB of text kept in memory over all streams; beyond it as for gateway_max_streams."""
    gateway_max_readers: int = Field(5000, ge=1)
    """Readers of events at once."""
    gateway_max_requests: int = Field(200, ge=1)
    """Other requests at once."""
    gateway_requests_per_s: float = Field(50.0, gt=0)
    """Requests a second of one token or address; twice as many may come at once."""
    gateway_body_kib: int = Field(256, ge=1, le=8192)
    """Largest request body."""
    gateway_send_timeout_s: float = Field(20.0, gt=0)
    """A reader of events that takes nothing for so long is dropped; it may resume."""
    gateway_behind_s: float = Field(120.0, gt=0)
    """The page says that notes are behind when the oldest text that they do not cover is so old."""

    @field_validator("gateway_tenant_header")
    @classmethod
    def _check_header(cls, value: str) -> str:
        if not _HEADER.fullmatch(value):
            raise ValueError("expected the name of a header, such as X-Auth-Request-Groups")
        return value.lower()

    @field_validator("gateway_proxies")
    @classmethod
    def _check_addresses(cls, value: str) -> str:
        for address in _listed(value):
            ipaddress.ip_address(address)
        return value

    @field_validator("gateway_origins")
    @classmethod
    def _check_origins(cls, value: str) -> str:
        if not all(_ORIGIN.fullmatch(origin) for origin in _listed(value)):
            raise ValueError("expected https://host, several with commas between")
        return value

    @field_validator("gateway_tokens_file")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return value and value.expanduser()

    @property
    def gateway_proxy_list(self) -> frozenset[str]:
        return frozenset(_listed(self.gateway_proxies))

    @property
    def gateway_host_list(self) -> frozenset[str]:
        return frozenset(_listed(self.gateway_hosts.lower()))

    @property
    def gateway_origin_list(self) -> frozenset[str]:
        return frozenset(_listed(self.gateway_origins.lower()))


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
