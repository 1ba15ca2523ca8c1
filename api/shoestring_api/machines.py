# SPDX-License-Identifier: Apache-2.0
"""Machines over REST: taking one away, as a provider would."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter
from shoestring_core import rest
from shoestring_core.errors import Unavailable

router = APIRouter(prefix="/v1/machines", tags=["machines"])


@router.post("/{machine_id}:reclaim", status_code=202)
def reclaim(machine_id: UUID, body: rest.Reclaim | None = None) -> rest.Machine:
    """Have the simulated provider take a spot machine back (admin)."""
    raise Unavailable("The store is being built.")
