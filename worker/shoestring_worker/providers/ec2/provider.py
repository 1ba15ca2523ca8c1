# SPDX-License-Identifier: Apache-2.0
"""Machines on EC2, by the provider contract: offers, launches, lists, sweeps and ends."""

from __future__ import annotations

import builtins
import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
from shoestring_core.decide.billing import PriceChange
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, MachineRef, ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.sweeps import Leftover
from shoestring_core.decide.timeouts import S
from shoestring_core.launch_request import LaunchRequest

from shoestring_worker.providers.base import CALL_TIMEOUT_S, LaunchRefused, ManagedProvider, OutcomeUnknown
from shoestring_worker.providers.ec2.calls import READ_TIMEOUT_S, Calls
from shoestring_worker.providers.ec2.errors import REFUSAL_ADVICE, read_error
from shoestring_worker.providers.ec2.instances import read_instance
from shoestring_worker.providers.ec2.leftovers import CALLS, DELETIONS, GONE, action_of, read_leftovers
from shoestring_worker.providers.ec2.market import Market
from shoestring_worker.providers.ec2.rate_limits import RateLimits
from shoestring_worker.providers.ec2.run_instances import (
    RootDisk,
    create_placement_group,
    disk_of,
    run_instances,
)
from shoestring_worker.providers.ec2.settings import Ec2Settings, read_settings
from shoestring_worker.settings import WorkerSettings

log = logging.getLogger(__name__)

PAGE_SIZE = 1_000
TERMINATED_AT_ONCE = 100
"""EC2 takes 1,000 and recommends fewer: docs.aws.amazon.com/AWSEC2/latest/APIReference/API_TerminateInstances.html"""
TIMEOUTS = {
    "boot": 600 * S,
    "hello": 300 * S,  # the instance's own boot, and the minute in which its user data reaches the service
    "drain": 180 * S,
    "consistency_window": 300 * S,
    "launch_window": 300 * S,
    "launch_call": 28 * S,  # the first launch in a region makes two calls, in a placement group three
    "notice": 118 * S,  # two minutes, less the second between an agent's looks at it and what it keeps to end by itself
}
"""Bounds, not yet measured: a machine may take minutes to boot, to be listed and to terminate."""


def open_provider(name: str, settings: WorkerSettings) -> ManagedProvider:
    """Raises ValueError if the settings don't allow it."""
    ec2 = read_settings()
    if not (settings.agent_url.startswith("https://") or _on_loopback(ec2.endpoint_url)):
        raise ValueError(
            f"SHOESTRING_AGENT_URL is {settings.agent_url}; machines on EC2 need an https:// URL that they can reach."
        )
    return ManagedProvider(Ec2Provider(name, ec2), settings.timeouts.model_copy(update=TIMEOUTS))


class Ec2Provider:
    """Instances in the regions of the settings, by the credentials that boto3 finds."""

    def __init__(
        self,
        name: str,
        settings: Ec2Settings,
        *,
        read_timeout_s: float = READ_TIMEOUT_S,
        monotonic: Callable[[], float] = time.monotonic,
        limits: RateLimits | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._name, self._settings, self._monotonic = name, settings, monotonic
        self._calls = Calls(settings.endpoint_url, read_timeout_s, limits or RateLimits(), now)
        self._priced_ends: dict[str, set[str]] = {}
        """By region: spot instances that have ended, whose last price is known."""
        self._root_disks: dict[str, RootDisk] = {}
        self._unsent_terminations: dict[str, dict[str, None]] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(min(4 * len(settings.regions), 32), thread_name_prefix=f"list-{name}")
        self._market = Market(name, settings, self._calls, self._threads, monotonic)

    def offers(self, requirements: Collection[Requirements]) -> builtins.list[Offer]:  # noqa: ARG002 - few enough
        return self._market.offers()

    def launch(self, request: LaunchRequest) -> ProviderMachine:
        if request.zone not in getattr(self._settings.regions.get(request.region), "subnets", {}):
            raise LaunchRefused(RefusalKind.CAPACITY, f"SHOESTRING_EC2_REGIONS has no subnet in {request.zone}")
        root_disk, disk = self._root_disk(request.region), disk_of(request, self._settings)
        if disk.gib < root_disk.gib:
            message = f"the image needs a disk of {root_disk.gib} GiB, and this is one of {disk.gib} GiB; raise it in"
            raise LaunchRefused(RefusalKind.INVALID, f"{message} resources.disk.size, or in SHOESTRING_EC2_DISK_GIB")
        if request.placement_group is not None:
            self._ensure_placement_group(request)
        arguments = run_instances(request, self._settings, root_disk.device)
        reply = self._calls.for_launch(
            request.region, "RunInstances", lambda ec2: ec2.run_instances(**arguments), request.data_role
        )
        return read_instance(self._name, request.region, reply["Instances"][0])

    def _ensure_placement_group(self, request: LaunchRequest) -> None:
        """Raises LaunchRefused, OutcomeUnknown."""

        def create(ec2: Any) -> None:
            try:
                ec2.create_placement_group(**create_placement_group(request, self._settings))
            except ClientError as error:
                if read_error(error.response)[0] != "InvalidPlacementGroup.Duplicate":
                    raise

        self._calls.for_launch(request.region, "CreatePlacementGroup", create)

    @property
    def configured_regions(self) -> Collection[str]:
        return self._settings.regions

    def enabled_regions(self) -> Collection[str]:
        """As the first of the configured regions says that answers."""

        def ask(region: str) -> builtins.list[str]:
            answer: dict[str, Any] = self._calls.read(region, "DescribeRegions", lambda ec2: ec2.describe_regions())
            return [each["RegionName"] for each in answer["Regions"]]

        calls = [self._threads.submit(ask, region) for region in self._settings.regions]
        for call in calls[:-1]:
            with suppress(OutcomeUnknown):
                return call.result()
        return calls[-1].result()

    def list(self, deployment: str) -> builtins.list[ProviderMachine]:
        deadline, regions = self._monotonic() + CALL_TIMEOUT_S, self._settings.regions
        listed = self._threads.map(lambda region: [*self._list_region(region, deployment, deadline)], regions)
        # priced outside of the threads, which it needs itself
        return [
            machine for region, found in zip(regions, listed, strict=True) for machine in self._priced(region, found)
        ]

    def list_region(self, deployment: str, region: str) -> builtins.list[ProviderMachine]:
        deadline = self._monotonic() + CALL_TIMEOUT_S
        return self._priced(region, builtins.list(self._list_region(region, deployment, deadline)))

    def list_leftovers(self, deployment: str, region: str) -> builtins.list[Leftover]:
        found: builtins.list[Leftover] = []
        for kind, (method, _, filters) in CALLS.items():

            def describe(ec2: Any, method: str = method, filters: Any = filters) -> dict[str, Any]:
                answer: dict[str, Any] = getattr(ec2, method)(Filters=filters)
                return answer

            answer = self._calls.read(region, action_of(kind), describe)
            found += read_leftovers(self._name, region, kind, deployment, answer)
        return found

    def delete(self, leftover: Leftover) -> None:
        action, method, argument = DELETIONS[leftover.kind]
        ids = [leftover.id] if argument.endswith("s") else leftover.id
        try:
            self._calls.call(leftover.region, action, lambda ec2: getattr(ec2, method)(**{argument: ids}))
        except ClientError as error:
            code, message, _ = read_error(error.response)
            if code not in GONE:
                raise OutcomeUnknown(f"EC2 answered {code}: {message}") from error

    def terminate(self, ref: MachineRef) -> None:
        """Those that EC2's limit leaves no call for go together with the next call, which doesn't wait for them."""
        with self._lock:
            unsent = self._unsent_terminations.setdefault(ref.region, {})
            unsent[ref.id] = None
        self._calls.take_turn(ref.region, "TerminateInstances", patience_s=0)
        with self._lock:
            ids = builtins.list(unsent)[:TERMINATED_AT_ONCE]
            for id_ in ids:
                del unsent[id_]
        try:
            self._calls.send(ref.region, "TerminateInstances", lambda ec2: ec2.terminate_instances(InstanceIds=ids))
        except ClientError as error:
            code, message, _ = read_error(error.response)
            if code != "InvalidInstanceID.NotFound":
                raise OutcomeUnknown(f"EC2 answered {code}: {message}") from error
            # it ended long ago, or is not visible yet: then it is asked again. The others were not terminated either.
            with self._lock:
                unsent.update((id_, None) for id_ in ids if id_ not in message)

    def _priced(
        self, region: str, listed: builtins.list[tuple[ProviderMachine, dict[str, Any]]]
    ) -> builtins.list[ProviderMachine]:
        """The machines with the prices that held while they ran; of one that has ended, up to its end."""
        spot = {machine.id for machine, instance in listed if instance.get("InstanceLifecycle") == "spot"}
        ended = {machine.id for machine, _ in listed if machine.id in spot and machine.state == "ended"}
        if not ended <= self._priced_ends.get(region, set()):
            try:
                self._market.refresh_spot_prices()
            except OutcomeUnknown as unknown:  # its end is known, and its bill is an estimate anyhow
                log.warning("%s: %d ended machines are billed at older prices: %s", self._name, len(ended), unknown)
        self._priced_ends[region] = ended
        rate_caps = self._market.rate_caps(region)
        return [
            replace(
                machine,
                price_changes=self._price_changes(machine, instance) if machine.id in spot else (),
                rate_cap=rate_caps.get(instance["InstanceType"], "0"),
            )
            for machine, instance in listed
        ]

    def _price_changes(self, machine: ProviderMachine, instance: dict[str, Any]) -> tuple[PriceChange, ...]:
        zone, type_ = instance["Placement"]["AvailabilityZone"], instance["InstanceType"]
        return self._market.price_changes(zone, type_, machine.launched_at, machine.ended_at)

    def _list_region(
        self, region: str, deployment: str, deadline: float
    ) -> Iterator[tuple[ProviderMachine, dict[str, Any]]]:
        page = self._describe(region, deployment)
        while True:
            for reservation in page["Reservations"]:
                for instance in reservation["Instances"]:
                    yield read_instance(self._name, region, instance), instance
            if not page.get("NextToken"):
                return
            if self._monotonic() > deadline:
                raise OutcomeUnknown(f"EC2 did not list all instances in {region} in {CALL_TIMEOUT_S:.0f} s")
            page = self._describe(region, deployment, NextToken=page["NextToken"])

    def _describe(self, region: str, deployment: str, **more: str) -> dict[str, Any]:
        """One page of the deployment's instances."""
        ours = [{"Name": f"tag:{DEPLOYMENT_TAG}", "Values": [deployment]}]

        def describe(ec2: Any) -> dict[str, Any]:
            page: dict[str, Any] = ec2.describe_instances(Filters=ours, MaxResults=PAGE_SIZE, **more)
            return page

        return self._calls.read(region, "DescribeInstances", describe)

    def _root_disk(self, region: str) -> RootDisk:
        """Of the region's image."""
        if (known := self._root_disks.get(region)) is None:
            image = self._settings.regions[region].image
            reply = self._calls.for_launch(region, "DescribeImages", lambda ec2: ec2.describe_images(ImageIds=[image]))
            if not reply["Images"]:
                message = f"{image} is not in {region}, or this account may not use it"
                raise LaunchRefused(RefusalKind.IMAGE, f"{message}. {REFUSAL_ADVICE[RefusalKind.IMAGE]}")
            known = self._root_disks[region] = RootDisk.of(reply["Images"][0])
        return known


def _on_loopback(url: str | None) -> bool:
    host = urlsplit(url or "").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
