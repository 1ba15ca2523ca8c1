# SPDX-License-Identifier: Apache-2.0
"""Placement groups, of which moto has none: by name, with the strategy cluster in one zone, kept while in use.

source  docs.aws.amazon.com/AWSEC2/latest/UserGuide/placement-groups.html, and placement-strategies.html there
        docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html (InvalidPlacementGroup.…)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from shoestring_worker.fake_ec2 import moto_backend
from shoestring_worker.fake_ec2.spot_requests import tags_of
from shoestring_worker.fake_ec2.wire import Answer, Call, error_answer, xml_answer

GROUP = "Placement.GroupName"
KIND = "placement-group"


@dataclass
class PlacementGroup:
    strategy: str
    tags: dict[str, str]
    instances: list[str] = field(default_factory=list)


class PlacementGroups:
    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], PlacementGroup] = {}
        """By region and name."""

    def clear(self) -> None:
        self._groups.clear()

    def create(self, call: Call) -> Answer:
        key = (call.region, call.parameters.get("GroupName", ""))
        if key in self._groups:
            message = f"The placement group '{key[1]}' already exists."
            return error_answer(400, "InvalidPlacementGroup.Duplicate", message)
        self._groups[key] = PlacementGroup(call.parameters.get("Strategy", ""), tags_of(call, KIND))
        body = f"<return>true</return><placementGroup>{_described(key[1], self._groups[key])}</placementGroup>"
        return xml_answer("200 OK", f"<CreatePlacementGroupResponse>{body}</CreatePlacementGroupResponse>")

    def delete(self, call: Call, has_ended: Callable[[str], bool | None]) -> Answer:
        key = (call.region, call.parameters.get("GroupName", ""))
        if key not in self._groups:
            return _unknown(key[1])
        if any(has_ended(instance) is False for instance in self._groups[key].instances):
            message = f"The placement group '{key[1]}' is in use and may not be deleted."
            return error_answer(400, "InvalidPlacementGroup.InUse", message)
        del self._groups[key]
        return xml_answer(
            "200 OK", "<DeletePlacementGroupResponse><return>true</return></DeletePlacementGroupResponse>"
        )

    def describe(self, call: Call) -> Answer:
        """All groups of the region: all are available."""
        items = [
            f"<item>{_described(name, group)}</item>"
            for (region, name), group in self._groups.items()
            if region == call.region
        ]
        body = f"<placementGroupSet>{''.join(items)}</placementGroupSet>"
        return xml_answer("200 OK", f"<DescribePlacementGroupsResponse>{body}</DescribePlacementGroupsResponse>")

    def refuse(self, call: Call, has_ended: Callable[[str], bool | None]) -> Answer | None:
        """EC2's answer to a launch that its placement group doesn't allow; None: it does, or names none."""
        name, type_ = call.parameters.get(GROUP), call.parameters.get("InstanceType", "")
        if name is None:
            return None
        group = self._groups.get((call.region, name))
        if group is None:
            return _unknown(name)
        if not moto_backend.can_cluster(type_):
            message = f"Cluster placement groups are not supported by the '{type_}' instance type."
            return error_answer(400, "InvalidParameterCombination", message)
        wanted = moto_backend.zone_of_subnet(call.region, call.parameters.get("NetworkInterface.1.SubnetId", ""))
        alive = [instance for instance in group.instances if has_ended(instance) is False]
        if any(found.zone != wanted for one in alive if (found := moto_backend.find_instance(call.region, one))):
            return error_answer(400, "InvalidParameterValue", "A cluster placement group can't span zones.")
        return None

    def note_launched(self, call: Call, instances: Iterable[str]) -> None:
        if group := self._groups.get((call.region, call.parameters.get(GROUP, ""))):
            group.instances += [instance for instance in instances if instance not in group.instances]


def _unknown(name: str) -> Answer:
    return error_answer(400, "InvalidPlacementGroup.Unknown", f"The Placement Group '{name}' is unknown.")


def _described(name: str, group: PlacementGroup) -> str:
    tags = "".join(
        f"<item><key>{escape(key)}</key><value>{escape(value)}</value></item>" for key, value in group.tags.items()
    )
    return (
        f"<groupName>{escape(name)}</groupName><strategy>{escape(group.strategy)}</strategy><state>available</state>"
        f"<tagSet>{tags}</tagSet>"
    )
