# SPDX-License-Identifier: Apache-2.0
"""The agent protocol: what rented machines call. Its messages and rules are in `shoestring_core.wire`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from shoestring_core import wire
from shoestring_core.errors import Unavailable

router = APIRouter(prefix="/agent/v1", tags=["agent"])


def _not_yet() -> Unavailable:
    return Unavailable("The store is being built.")


@router.post("/redeem")
def redeem(body: wire.Redeem) -> wire.Reply:
    """Trade the boot token for the agent's own session."""
    raise _not_yet()


@router.post("/report")
def report(body: wire.Report) -> wire.Reply:
    """Heartbeat, one numbered batch, the state of the machine's ranks."""
    raise _not_yet()


@router.get("/orders")
async def orders(after: Annotated[str, Query(max_length=200)] = "") -> wire.Reply:
    """What the service wants of the machine; held until it differs from `after`."""
    raise _not_yet()


@router.post("/checkpoints")
def checkpoint(body: wire.Commit) -> wire.Committed:
    """A checkpoint is uploaded."""
    raise _not_yet()
