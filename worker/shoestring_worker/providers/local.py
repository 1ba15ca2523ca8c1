# SPDX-License-Identifier: Apache-2.0
"""The local provider: a client of the machine host, which runs machines as process trees on its computer."""

from __future__ import annotations

import builtins
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import httpx
from shoestring_core.decide.offers import Hardware, Offer
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, MachineRef, ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.launch_request import LaunchRequest

from shoestring_worker.machinehost_client import MachineHostClient
from shoestring_worker.providers.base import LaunchRefused, ManagedProvider, OutcomeUnknown
from shoestring_worker.settings import WorkerSettings

REGION = "local"
TYPE = "local.cpu"
PRICE_SOURCE = "settings SHOESTRING_LOCAL_PRICE_SPOT and SHOESTRING_LOCAL_PRICE_ON_DEMAND"
REFUSALS = {"capacity": RefusalKind.CAPACITY, "bad-request": RefusalKind.INVALID}
"""Error codes that prove that this call launched no machine."""


def open_provider(name: str, settings: WorkerSettings) -> ManagedProvider:
    adapter = LocalProvider(
        name,
        settings.machinehost_file,
        slots=settings.local_slots,
        price_spot=settings.local_price_spot,
        price_on_demand=settings.local_price_on_demand,
    )
    return ManagedProvider(adapter, settings.timeouts)


class LocalProvider:
    """Machines of the host whose URL and key are in the file `address` (machinehost.json)."""

    def __init__(self, name: str, address: Path, *, slots: int, price_spot: str, price_on_demand: str) -> None:
        self._name, self._host = name, MachineHostClient(address)
        prices: dict[Literal["spot", "on_demand"], str] = {"spot": price_spot, "on_demand": price_on_demand}
        self._offers = [
            Offer(
                name,
                REGION,
                "",
                TYPE,
                market,
                price,
                price_on_demand,
                slots,
                PRICE_SOURCE,
                simulated=True,
                hardware=Hardware(os.cpu_count() or 1, _memory_mib()),
            )
            for market, price in prices.items()
        ]

    def offers(self, requirements: Collection[Requirements]) -> builtins.list[Offer]:  # noqa: ARG002 - has only these
        return self._offers

    def launch(self, request: LaunchRequest) -> ProviderMachine:
        body = {
            "tags": request.tags,
            "type": request.type,
            "market": request.market,
            "price": request.price,
            "user_data": request.user_data.model_dump(mode="json"),
        }
        reply = self._host.call("PUT", f"/machines/{request.token}", body)
        if reply.status_code in (200, 201):
            return self._provider_machine(reply.json())
        problem = _json_object(reply)
        code, detail = str(problem.get("code", reply.status_code)), str(problem.get("detail", ""))
        if reply.status_code < 500 and code in REFUSALS:
            raise LaunchRefused(REFUSALS[code], detail)
        raise OutcomeUnknown(f"the machine host answered {reply.status_code} {code}: {detail}")

    def list(self, deployment: str) -> builtins.list[ProviderMachine]:
        reply = self._host.call("GET", "/machines")
        if reply.status_code != 200:
            raise OutcomeUnknown(f"the machine host answered {reply.status_code}")
        machines = [self._provider_machine(machine) for machine in reply.json()["machines"]]
        return [machine for machine in machines if machine.tags.get(DEPLOYMENT_TAG) == deployment]

    def terminate(self, ref: MachineRef) -> None:
        reply = self._host.call("DELETE", f"/machines/{ref.id}")
        if reply.status_code not in (200, 202, 404):
            raise OutcomeUnknown(f"the machine host answered {reply.status_code}")

    def _provider_machine(self, machine: dict[str, Any]) -> ProviderMachine:
        return ProviderMachine(
            provider=self._name,
            region=REGION,
            id=machine["id"],
            token=machine["token"],
            tags=machine["tags"],
            state=machine["state"],
            launched_at=machine["launched_at"],
            ended_at=machine["ended_at"],
            end_cause=machine["end_cause"],
            clock_shift=machine["clock_shift"],
        )


def _memory_mib() -> int:
    """The memory of this computer, which all machines share."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def _json_object(reply: httpx.Response) -> dict[str, Any]:
    try:
        body = reply.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
