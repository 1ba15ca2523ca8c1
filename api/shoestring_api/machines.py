# SPDX-License-Identifier: Apache-2.0
"""Machines over REST: taking one away, as a spot provider would."""

from __future__ import annotations

import json
from uuid import UUID

import httpx
from fastapi import APIRouter
from shoestring_core import rest
from shoestring_core.errors import NotFound, Unavailable, WrongState
from shoestring_core.store import rows
from shoestring_core.store.tables import MachineRow

from shoestring_api import views
from shoestring_api.bodies import ExactRoute
from shoestring_api.service import Admin, Here, Service

router = APIRouter(prefix="/v1/machines", tags=["machines"], route_class=ExactRoute)

TIMEOUT_S = 5.0


@router.post("/{machine_id}:reclaim", status_code=202)
def reclaim(machine_id: UUID, service: Here, caller: Admin, body: rest.Reclaim | None = None) -> rest.Machine:
    """Have the local provider take a machine back (admin): it gets a notice, and is taken when that has passed."""
    with service.store.read() as db:
        machine = rows.machine(db, caller.team, machine_id)
        if machine is None:
            raise NotFound("There is no such machine.")
        view = views.machine(machine, rows.posted(db, machine), db.now)
    if machine.provider != "local":
        raise WrongState(f"Machines of {machine.provider} can't be taken back from here.")
    if machine.provider_id is None or machine.state not in ("calling", "up"):
        raise WrongState(f"The machine is {machine.state}; only one that runs can be taken back.")
    _ask_provider(service, machine, (body or rest.Reclaim()).notice_s)
    return view


def _ask_provider(service: Service, machine: MachineRow, notice_s: float) -> None:
    host, key = _machine_host(service)
    try:
        answer = httpx.post(
            f"{host}/machines/{machine.provider_id}/reclaim",
            json={"notice_s": notice_s},
            headers={"Authorization": f"Bearer {key}"},
            timeout=TIMEOUT_S,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        raise Unavailable("The machine host does not answer.", hint="Check that it runs, then try again.") from error
    if answer.status_code == 404:
        raise NotFound("The machine host does not know this machine.")
    if answer.status_code >= 300:
        raise WrongState(f"The machine host refused: {answer.text[:200]}")


def _machine_host(service: Service) -> tuple[str, str]:
    path = service.settings.machinehost
    if path is None:
        raise Unavailable("No machine host is set up.", hint="Set SHOESTRING_MACHINEHOST to its machinehost.json.")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return str(facts["url"]), str(facts["key"])
    except (OSError, ValueError, KeyError) as error:
        raise Unavailable("The machine host has not said where it is.", hint=f"Check that it runs ({path}).") from error
