# SPDX-License-Identifier: Apache-2.0
"""From boot to a registered machine: boot data, folder, session with the service."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from shoestring_core.wire import BootData, RegisterRequest, from_stored

from shoestring_trainer.agent.metadata_client import MetadataClient, MetadataUnavailable
from shoestring_trainer.agent.rank_user import open_to_ranks
from shoestring_trainer.agent.service_client import (
    RequestRejected,
    ServiceClient,
    TimedReply,
    Unreachable,
    backoff_delays,
    boottime,
)
from shoestring_trainer.agent.spool import write_durably
from shoestring_trainer.rank_server.isolation import READABLE_OF_MACHINE, WRITABLE_OF_MACHINE

log = logging.getLogger(__name__)

METADATA_RETRY_S, REGISTER_RETRY_S = 30.0, 600.0


class AgentStartupError(Exception):
    """The agent can't start. `code` is the exit code, one of sysexits.h."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


async def read_boot_data(environment: Mapping[str, str], metadata: MetadataClient) -> BootData:
    """Return the boot data, from SHOESTRING_BOOT_FILE or the user data. Raises AgentStartupError."""
    if path := environment.get("SHOESTRING_BOOT_FILE"):
        try:
            return from_stored(BootData, json.loads(Path(path).read_text()))
        except (OSError, ValueError) as error:
            raise AgentStartupError(os.EX_CONFIG, f"SHOESTRING_BOOT_FILE is {path}: {error}") from error
    deadline = boottime() + METADATA_RETRY_S
    for delay in backoff_delays(most_s=2.0):
        try:
            return from_stored(BootData, await metadata.user_data())
        except ValidationError as error:
            message = f"the user data is not an agent's ({error}): launch through the service"
            raise AgentStartupError(os.EX_CONFIG, message) from error
        except MetadataUnavailable as error:
            if boottime() + delay > deadline:
                raise AgentStartupError(
                    os.EX_CONFIG, f"no user data after {METADATA_RETRY_S:.0f} s: {error}"
                ) from error
            await asyncio.sleep(delay)
    raise AssertionError


def create_folders(folder: Path, rank_user: int | None) -> None:
    """Create the folders below a machine's folder, and check that they can be written. Raises AgentStartupError.

    rank_user  the user that ranks are; None: the agent's
    """
    try:
        for name in ("spool", "rejected", *READABLE_OF_MACHINE, *WRITABLE_OF_MACHINE):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if rank_user is not None:
            open_to_ranks(folder, rank_user)
        write_durably(folder / "probe", "")
    except OSError as error:
        raise _not_writable(folder, error) from error


def load_or_create_session_secret(folder: Path) -> str:
    """Return the secret in the machine's folder, made on first use. Raises AgentStartupError.

    It is on the disk before it is sent, so that an agent that replaces a killed one has the same session.
    """
    path = folder / "session"
    try:
        if not path.exists():
            write_durably(path, secrets.token_urlsafe(32))
        return path.read_text()
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> AgentStartupError:
    return AgentStartupError(os.EX_CANTCREAT, f"{folder} can't be written ({error.strerror}); this machine shuts down")


async def find_address(metadata: MetadataClient) -> str:
    """Return the address at which other machines reach this one; loopback if the metadata service names none."""
    try:
        return await metadata.local_address()
    except MetadataUnavailable:
        return "127.0.0.1"


async def register(service: ServiceClient, request: RegisterRequest) -> TimedReply:
    """Exchange the boot token for a session.

    Raises AgentStartupError if the service rejects this machine, or doesn't answer for REGISTER_RETRY_S.
    """
    deadline = boottime() + REGISTER_RETRY_S
    for delay in backoff_delays():
        try:
            return await service.register(request)
        except RequestRejected as rejection:
            message = f"the service rejects this machine ({rejection}): its boot token is forged or was used before"
            raise AgentStartupError(os.EX_NOPERM, message) from rejection
        except Unreachable as error:
            log.warning("not registered yet: %s", error)
            if boottime() + delay > deadline:
                message = f"the service did not answer for {REGISTER_RETRY_S:.0f} s"
                raise AgentStartupError(os.EX_TEMPFAIL, message) from error
            await asyncio.sleep(delay)
    raise AssertionError
