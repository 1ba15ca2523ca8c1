# SPDX-License-Identifier: Apache-2.0
"""Instances that really run: a machine host executes the user data of each, and their states follow its machines.

source  docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-lifecycle.html
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from shoestring_worker.fake_ec2.moto_backend import MotoInstance
from shoestring_worker.machinehost_client import MachineHostClient
from shoestring_worker.providers.base import OutcomeUnknown

COMMANDS = {"nvidia-smi": "#!/bin/sh\necho '580.95.05, no GPU (fake EC2)'\n"}
"""What the fake's image has besides what this computer has."""


@dataclass(frozen=True)
class MachineState:
    """Of an instance's machine. `ended_at`, `end_cause`: of one that has ended."""

    state: Literal["pending", "running", "shutting-down", "terminated"]
    ended_at: datetime | None = None
    end_cause: str | None = None


class Machines:
    """The machines of the instances. An instance's id is the token of its machine."""

    def __init__(self, host: MachineHostClient) -> None:
        self._host = host

    def launch(self, instance: MotoInstance, user_data: str, market: str) -> bool:
        """Boot an instance. False: there is no room for it. Raises OutcomeUnknown."""
        script = base64.b64decode(user_data).decode()
        body = {
            "type": instance.type,
            "market": market,
            "price": "0",
            "user_data": script if script.startswith("#!") else "#!/bin/sh\n",  # cloud-init executes nothing else
            "metadata": {"instance-id": instance.id, "placement/availability-zone": instance.zone},
            "commands": COMMANDS,
        }
        reply = self._host.call("PUT", f"/machines/{instance.id}", body)
        if reply.status_code in (200, 201):
            return True
        if reply.status_code == 409 and reply.json().get("code") == "capacity":
            return False
        raise OutcomeUnknown(f"the machine host answered {reply.status_code}: {reply.text[:200]}")

    def states(self) -> dict[str, MachineState]:
        """Of all instances, by their id. Raises OutcomeUnknown."""
        return {instance: _state(machine) for instance, machine in self._machines().items()}

    def stop(self, instance: str) -> None:
        self._act("DELETE", instance, "")

    def interrupt(self, instance: str, notice_s: float) -> None:
        """Interrupt an instance after its notice has stood in its metadata for so long."""
        self._act("POST", instance, "/preempt", {"notice_s": notice_s, "force": True})

    def recommend_rebalance(self, instance: str) -> None:
        self._act("POST", instance, "/rebalance")

    def _act(self, method: str, instance: str, path: str, body: dict[str, object] | None = None) -> None:
        """Raises KeyError for an instance that isn't there, OutcomeUnknown."""
        reply = self._host.call(method, f"/machines/{self._machines()[instance]['id']}{path}", body)
        if reply.status_code != 202:
            raise OutcomeUnknown(f"the machine host answered {reply.status_code}: {reply.text[:200]}")

    def _machines(self) -> dict[str, dict[str, Any]]:
        reply = self._host.call("GET", "/machines")
        if reply.status_code != 200:
            raise OutcomeUnknown(f"the machine host answered {reply.status_code}")
        return {machine["token"]: machine for machine in reply.json()["machines"]}


def _state(machine: dict[str, Any]) -> MachineState:
    match machine["state"], machine["ended_at"]:
        case "ended", int(ended_at):
            cause = str(machine["end_cause"])
            if cause == "preempted" and machine["exit_code"] == 0 and ended_at < (machine["preempt_at"] or 0):
                cause = "exited"  # it shut itself down before EC2 would have interrupted it
            return MachineState("terminated", datetime.fromtimestamp(ended_at / 1e6, UTC), cause)
        case "stopping", _:
            return MachineState("shutting-down")
        case "running", _:
            return MachineState("running")
    return MachineState("pending")
