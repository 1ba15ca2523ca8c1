# SPDX-License-Identifier: Apache-2.0
"""Machines: preempt one of the machine host's, as a spot provider would."""

from __future__ import annotations

import json
from uuid import UUID

import httpx
from fastapi import APIRouter
from shoestring_core import rest
from shoestring_core.errors import InvalidState, NotFound, Unavailable
from shoestring_core.store import audit, queries
from shoestring_core.store.tables import MachineRow
from shoestring_core.wording import machines as reasons

from shoestring_api.app_state import AppState
from shoestring_api.dependencies import Caller, StateDep
from shoestring_api.json_body import ExactJsonRoute
from shoestring_api.serializers.attempts import serialize_machine

router = APIRouter(prefix="/v1/machines", tags=["machines"], route_class=ExactJsonRoute)

TIMEOUT_S = 5.0


@router.post("/{machine_id}:preempt", status_code=202)
def preempt(machine_id: UUID, state: StateDep, caller: Caller, body: rest.PreemptRequest | None = None) -> rest.Machine:
    """Preempt a simulated machine (admin): it gets a notice and is terminated `notice_s` later."""
    with state.store.read() as db:
        machine = queries.load_machine(db, caller.team, machine_id)
        if machine is None:
            raise NotFound("No such machine.")
        resource = serialize_machine(machine, queries.load_posted(db, machine), db.now)
    if not machine.simulated:
        raise InvalidState(reasons.PreemptionNotSimulated(machine.provider))
    if machine.provider_id is None or machine.state not in ("launching", "running"):
        raise InvalidState(reasons.MachineNotRunning(machine.state))
    notice_s = (body or rest.PreemptRequest()).notice_s
    state.store.write(lambda db: audit.record(db, caller, "preempt", f"machine {machine_id}", notice_s=notice_s))
    _request_preemption(state, machine, notice_s)
    return resource


def _request_preemption(state: AppState, machine: MachineRow, notice_s: float) -> None:
    host, key = _read_machine_host(state)
    try:
        answer = httpx.post(
            f"{host}/machines/{machine.provider_id}/preempt",
            json={"notice_s": notice_s},
            headers={"Authorization": f"Bearer {key}"},
            timeout=TIMEOUT_S,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        raise Unavailable("The machine host does not answer.", hint="Check that it runs, then try again.") from error
    if answer.status_code == 404:
        raise NotFound("The machine host has no such machine.")
    if answer.status_code >= 300:
        raise InvalidState(reasons.MachineHostRefused(answer.text[:200]))


def _read_machine_host(state: AppState) -> tuple[str, str]:
    path = state.settings.machinehost_file
    if path is None:
        raise Unavailable(
            "No machine host is configured.", hint="Set SHOESTRING_MACHINEHOST_FILE to its machinehost.json."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return str(config["url"]), str(config["key"])
    except (OSError, ValueError, KeyError) as error:
        raise Unavailable(
            "The machine host has not written its address.", hint=f"Check that it runs ({path})."
        ) from error
