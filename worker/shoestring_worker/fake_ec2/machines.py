# SPDX-License-Identifier: Apache-2.0
"""Instances that really run: a machine host executes the user data of each, and their states follow its machines.

source  docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-lifecycle.html
"""

from __future__ import annotations

import base64
import json
import shlex
import shutil
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from shoestring_core.machine_network import NetworkStatus

from shoestring_worker.fake_ec2.moto_backend import MotoInstance
from shoestring_worker.fake_ec2.role_keys import RoleKeys
from shoestring_worker.fake_ec2.s3 import SECRET_ACCESS_KEY
from shoestring_worker.machinehost_client import MachineHostClient
from shoestring_worker.providers.base import OutcomeUnknown

IMAGE = {
    "nvidia-smi": "#!/bin/sh\necho '580.95.05, no GPU (fake EC2)'\n",
    "python3": f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n',
}
"""The commands that the fake's image has besides this computer's. Its Python has the packages of this one."""
DISKS = {
    "lsblk": '#!/bin/sh\nfor disk in "{attached}"/*; do [ -e "$disk" ] && echo "$disk ${{disk##*/}}"; done; true\n',
    "blkid": '#!/bin/sh\n[ -e "$2/.ext4" ] || exit 2\n',
    "mkfs": '#!/bin/sh\n: > "$3/.ext4"\n',
    "mount": '#!/bin/sh\nrmdir "$2" && ln -s "$(readlink -f "$1")" "$2"\n',
}
"""The commands that find, format and mount a volume. Here it is a folder, which lives as long as the volume."""


@dataclass(frozen=True)
class MachineState:
    """Of an instance's machine. `ended_at`, `end_cause`: of one that has ended."""

    state: Literal["pending", "running", "shutting-down", "terminated"]
    ended_at: datetime | None = None
    end_cause: str | None = None


class Machines:
    """The machines of the instances. An instance's id is the token of its machine.

    volumes     folder of the volumes that are attached to instances
    roles       the access keys that instances' roles give them
    networks    own: each has a network of its own; shared: all have this computer's; auto: own if that can be
    """

    def __init__(
        self, host: MachineHostClient, volumes: Path, roles: RoleKeys, networks: Literal["own", "shared", "auto"]
    ) -> None:
        self._host, self._volumes, self._roles, self._networks = host, volumes, roles, networks
        self.s3_url = ""
        """Where programs on the image that ask for `AWS_ENDPOINT_URL` of machines find S3; "": at AWS's address."""

    def launch(self, instance: MotoInstance, user_data: str, market: str, role: str) -> str | None:
        """Boot an instance. Returns its address; None: there is no room for it. `role`: "": it has none.

        Raises OutcomeUnknown.
        """
        script = base64.b64decode(user_data).decode()
        body: dict[str, object] = {
            "type": instance.type,
            "market": market,
            "price": "0",
            "user_data": script if script.startswith("#!") else "#!/bin/sh\n",  # cloud-init executes nothing else
            "metadata": {
                "instance-id": instance.id,
                "placement/availability-zone": instance.zone,
                **(self._credentials(role) if role else {}),
            },
            "commands": self._image()
            | {name: script.format(attached=self._attached(instance.id)) for name, script in DISKS.items()},
        }
        if self.have_networks():
            body["network"] = {"groups": list(instance.groups), "inbound": list(instance.inbound)}
        reply = self._host.call("PUT", f"/machines/{instance.id}", body)
        if reply.status_code in (200, 201):
            return str(reply.json()["address"])
        if reply.status_code == 409 and reply.json().get("code") == "capacity":
            return None
        raise OutcomeUnknown(f"the machine host answered {reply.status_code}: {reply.text[:200]}")

    def network_status(self) -> NetworkStatus:
        """Whether instances can have networks of their own. Raises OutcomeUnknown."""
        reply = self._host.call("GET", "/network")
        if reply.status_code != 200:
            raise OutcomeUnknown(f"the machine host answered {reply.status_code}: {reply.text[:200]}")
        return NetworkStatus.of(reply.json())

    def states(self) -> dict[str, MachineState]:
        """Of all instances, by their id. Raises OutcomeUnknown."""
        return {instance: _state(machine) for instance, machine in self._machines().items()}

    def stop(self, instance: str) -> None:
        self._act("DELETE", instance, "")

    def interrupt(self, instance: str, notice_s: float) -> None:
        """Interrupt an instance after its notice has stood in its metadata for so long."""
        self._act("POST", instance, "/preempt", {"notice_s": notice_s, "force": True})

    def have_networks(self) -> bool:
        """Of their own. Raises OutcomeUnknown."""
        if self._networks == "auto":
            self._networks = "shared" if self.network_status().problem else "own"
        return self._networks == "own"

    def set_public_address(self, instance: str, address: str) -> None:
        self._act("POST", instance, "/address", {"address": address})

    def recommend_rebalance(self, instance: str) -> None:
        self._act("POST", instance, "/rebalance")

    def attach(self, instance: str, volume: str) -> None:
        """The volume becomes a device of the instance.

        docs.aws.amazon.com/ebs/latest/userguide/identify-nvme-ebs-device.html
        """
        folder, attached = self._volumes / volume, self._attached(instance)
        for each in (folder, attached):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        device = attached / volume.replace("-", "")
        device.unlink(missing_ok=True)
        device.symlink_to(folder)

    def delete_volume(self, volume: str) -> None:
        shutil.rmtree(self._volumes / volume, ignore_errors=True)

    def _image(self) -> dict[str, str]:
        """The commands of the image; its Python sends what it starts to the fake's S3, as agents ask for it."""
        python = f"export SHOESTRING_AGENT_AWS_ENDPOINT_URL={shlex.quote(self.s3_url)}\n" if self.s3_url else ""
        return {**IMAGE, "python3": IMAGE["python3"].replace("exec ", f"{python}exec ", 1)}

    def _attached(self, instance: str) -> Path:
        return self._volumes / "attached" / instance

    def _credentials(self, role: str) -> dict[str, str]:
        """docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html"""
        credentials = {
            "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
            "AccessKeyId": self._roles.key_of(role), "SecretAccessKey": SECRET_ACCESS_KEY, "Token": "none",
            "Expiration": "2099-01-01T00:00:00Z",
        }  # fmt: skip
        path = "iam/security-credentials"
        return {path: role, f"{path}/{role}": json.dumps(credentials)}

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
