# SPDX-License-Identifier: Apache-2.0
"""The settings of one API process, read once from SHOESTRING_… variables."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from shoestring_core import wire
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.regular_files import read_regular_text
from shoestring_core.tls import load_server
from shoestring_core.wakeups import RedisUrl


class Hosting(BaseModel):
    """What the machine costs that the service runs on, where somebody is billed for it by the hour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(max_length=200)]
    hourly_usd: Annotated[str, Field(pattern=r"^\d{1,3}(\.\d{1,6})?$")]
    since: Annotated[int, Field(ge=0, le=wire.LATEST_TIME)]
    """Unix time (s) at which it started."""


class ApiSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SHOESTRING_", env_nested_delimiter="__", frozen=True, extra="ignore")

    database_url: str
    secret: SecretStr | None = None
    secret_file: Path | None = None
    object_store: str
    """A folder, or s3://BUCKET/PREFIX."""
    object_store_endpoint_url: str | None = None
    """A server that speaks S3's API, in place of AWS's."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Host names to accept, comma-separated. Default: loopback names when bound to loopback, any otherwise."""
    public_url: str = ""
    """Base URL at which browsers reach the service. With https, session cookies are sent over https to it alone."""
    agent_url: str = ""
    """Base URL that agents call; default: this process on loopback."""
    tls_cert: Path | None = None
    """PEM file with the certificate that is served, and those between it and its authority."""
    tls_key: Path | None = None
    """PEM file with its key, without a password."""
    hosting: Hosting | None = None
    """As JSON: {"name": …, "hourly_usd": "0.03", "since": …}. It is shown on the budget page; no budget pays for it."""
    redis_url: RedisUrl = ""
    machinehost_file: Path | None = None
    """Path of the machine host's machinehost.json."""
    timeouts: Timeouts = Timeouts()
    """Set one with SHOESTRING_TIMEOUTS__DRAIN=30s; the worker needs the same."""
    data_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders that jobs may read, separated as in PATH."""
    hooks_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders with hooks that jobs may run; none: jobs run no hooks. Write access there runs code on machines."""
    log_quota_bytes: Annotated[int, Field(ge=0)] = wire.LOG_BYTES_PER_HOUR
    """Log bytes that are stored of a job in an hour."""

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("data_roots", "hooks_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return tuple(Path(name) for name in value.split(os.pathsep) if name) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_certificate(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("Set SHOESTRING_TLS_CERT and SHOESTRING_TLS_KEY together.")
        if self.tls_cert is not None and self.tls_key is not None:
            load_server(self.tls_cert, self.tls_key)
        return self

    def server_secret(self) -> str:
        """Return the secret that signs boot tokens and object URLs. Raises ValueError if none is set."""
        if self.secret is not None:
            return self.secret.get_secret_value()
        if self.secret_file is not None:
            return read_regular_text(self.secret_file).strip()
        raise ValueError("Set SHOESTRING_SECRET or SHOESTRING_SECRET_FILE.")

    def agent_base_url(self) -> str:
        scheme = "http" if self.tls_cert is None else "https"
        return (self.agent_url or f"{scheme}://127.0.0.1:{self.port}").rstrip("/")

    def on_https(self) -> bool:
        return self.tls_cert is not None or self.public_url.startswith("https://")

    def on_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def hosts(self) -> tuple[str, ...]:
        """Return the host names to accept, empty for any. On loopback they are restricted against DNS rebinding."""
        if self.allowed_hosts or not self.on_loopback():
            return self.allowed_hosts
        return ("localhost", "127.0.0.1", "[::1]", self.host)
