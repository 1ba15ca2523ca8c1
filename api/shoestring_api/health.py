# SPDX-License-Identifier: Apache-2.0
"""Whether the service works, for people, orchestrators and Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from shoestring_core import rest
from shoestring_core.errors import Unavailable

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": rest.Readiness}})
def readyz() -> rest.Readiness:
    """What the service needs, part by part."""
    raise Unavailable("The store is being built.")


@router.get("/metrics", response_class=PlainTextResponse)
def metrics() -> str:
    """Counters and gauges for Prometheus. Needs a key unless the service is bound to loopback."""
    raise Unavailable("The store is being built.")
