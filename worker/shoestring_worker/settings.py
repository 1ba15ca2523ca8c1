# SPDX-License-Identifier: Apache-2.0
"""The settings of one worker process, read once from SHOESTRING_… variables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from shoestring_core.decide.queue import HALF_LIFE
from shoestring_core.decide.timeouts import Microseconds, S, Timeouts
from shoestring_core.regular_files import read_regular_text
from shoestring_core.tls import read_certificates
from shoestring_core.wakeups import RedisUrl

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Price = Annotated[str, Field(pattern=r"^\d{1,9}(\.\d{1,9})?$")]


def _read_certificates(path: object) -> str:
    return read_certificates(Path(str(path))) if path else ""


class WorkerSettings(BaseSettings):
    """Prices are simulated, in dollars per hour."""

    model_config = SettingsConfigDict(env_prefix="SHOESTRING_", env_nested_delimiter="__", frozen=True, extra="ignore")

    database_url: str
    redis_url: RedisUrl = "redis://127.0.0.1:6379/0"
    secret: SecretStr | None = None
    secret_file: Path | None = None
    object_store: str
    """A folder, or s3://BUCKET/PREFIX, as the API has it."""
    object_store_endpoint_url: str | None = None
    """A server that speaks S3's API, in place of AWS's."""
    agent_url: str = "http://127.0.0.1:8000"
    ca: Annotated[str, BeforeValidator(_read_certificates)] = ""
    """The authority by which agents verify the service, set as the path of a PEM file; "": those that machines know."""
    providers: Annotated[tuple[str, ...], NoDecode] = ("local",)
    """Names in providers/registry.py, comma-separated: where machines are rented."""
    machinehost_file: Path
    local_slots: Annotated[int, Field(ge=1)] = max(2, os.cpu_count() or 2)
    local_price_spot: Price = "0.158"
    local_price_on_demand: Price = "0.526"
    tick_interval_s: Seconds = 1
    recent_half_life: Annotated[Microseconds, Field(le=3650 * 86_400 * S)] = HALF_LIFE
    """After so long, a dollar that a team spent counts half when it is decided whose turn it is."""
    timeouts: Timeouts = Timeouts()
    """Set one with SHOESTRING_TIMEOUTS__DRAIN=30s; the API needs the same."""

    @field_validator("providers", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    def server_secret(self) -> str:
        """Return the secret that signs boot tokens. Raises ValueError if none is set."""
        if self.secret is not None:
            return self.secret.get_secret_value()
        if self.secret_file is not None:
            return read_regular_text(self.secret_file).strip()
        raise ValueError("Set SHOESTRING_SECRET or SHOESTRING_SECRET_FILE.")
