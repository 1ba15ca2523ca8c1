# SPDX-License-Identifier: Apache-2.0
"""The request for one machine: stored with its row when it is planned, sent to its provider as often as needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from shoestring_core import wire


@dataclass(frozen=True)
class LaunchDisk:
    """GiB, operations per second, and throughput."""

    gib: int
    iops: int
    mib_per_s: int


@dataclass(frozen=True)
class LaunchRequest:
    """Repeated with the same content. The idempotency token launches at most one machine, however often it is sent.

    disk             None: what the provider gives without being asked
    placement_group  machines with the same are placed close together; None: anywhere
    efa              with EFA
    data_role        with which the machine may read its job's data; None: it has no role
    """

    token: str
    region: str
    zone: str
    tags: dict[str, str]
    type: str
    market: Literal["spot", "on_demand"]
    price: str
    user_data: wire.BootData
    disk: LaunchDisk | None = None
    placement_group: str | None = None
    efa: bool = False
    data_role: str | None = None

    def with_boot_token(self, token: str) -> LaunchRequest:
        """The request as it is sent: the token is derived for each call, so that it is stored nowhere."""
        return replace(self, user_data=self.user_data.model_copy(update={"boot_token": token}))

    def as_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = _REQUEST.dump_python(self, mode="json")
        return tree

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> LaunchRequest:
        return wire.from_stored(cls, tree)


_REQUEST = TypeAdapter(LaunchRequest)
