# SPDX-License-Identifier: Apache-2.0
"""What DescribeInstances and RunInstances say about an instance, as the provider contract has it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import S

STATES: Mapping[str, Literal["pending", "running", "stopping", "ended"]] = {
    "pending": "pending",
    "running": "running",
    "shutting-down": "stopping",
    "stopping": "stopping",  # not by us: our machines terminate on shutdown; its owner did, and it is then terminated
    "stopped": "stopping",
    "terminated": "ended",
}
"""docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-lifecycle.html"""

END_CAUSES = {
    "Server.SpotInstanceTermination": "preempted",
    "Server.SpotInstanceShutdown": "preempted",
    "Client.UserInitiatedShutdown": "requested",
    "Client.InstanceInitiatedShutdown": "exited",
    "Server.InsufficientInstanceCapacity": RefusalKind.CAPACITY,
    "Client.VolumeLimitExceeded": RefusalKind.QUOTA,
    "Client.InternalError": RefusalKind.ACCOUNT,  # often a key of KMS that may not be used for its disk
    "Client.InvalidSnapshot.NotFound": RefusalKind.IMAGE,
}
"""By the code of the state reason; a RefusalKind: it ended while it was pending, so that it was refused after all.

docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html; its other codes are failures.
"""

_TIME = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")


def read_instance(provider: str, region: str, instance: Mapping[str, Any]) -> ProviderMachine:
    state = STATES[instance["State"]["Name"]]
    reason = (instance.get("StateReason") or {}).get("Code", "")
    return ProviderMachine(
        provider=provider,
        region=region,
        id=instance["InstanceId"],
        token=instance.get("ClientToken", ""),
        tags={tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])},
        state=state,
        launched_at=_microseconds(instance["LaunchTime"]),
        ended_at=_ended_at(instance.get("StateTransitionReason", "")) if state == "ended" else None,
        image=instance.get("ImageId", ""),
        rests=instance["State"]["Name"] == "stopped",
        end_cause=END_CAUSES.get(reason, "crashed") if state in ("stopping", "ended") else None,
    )


def _ended_at(transition: str) -> int | None:
    """The time in a text such as "User initiated (2026-11-27 15:49:57 GMT)"; None where EC2 gives none."""
    if found := _TIME.search(transition):
        return _microseconds(datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC))
    return None


def _microseconds(time: datetime) -> int:
    return round(time.timestamp() * S)
