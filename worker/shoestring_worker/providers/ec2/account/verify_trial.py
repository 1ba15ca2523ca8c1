# SPDX-License-Identifier: Apache-2.0
"""What the rules of a verification share: the provider, its smallest machines, and the time that is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, PROVIDER_TAG, ProviderMachine
from shoestring_core.launch_request import LaunchDisk, LaunchRequest
from shoestring_core.wire import BootData

from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.base_image import UBUNTU, find_image
from shoestring_worker.providers.ec2.account.clock import Clock
from shoestring_worker.providers.ec2.provider import Ec2Provider
from shoestring_worker.providers.ec2.run_instances import RootDisk
from shoestring_worker.providers.ec2.settings import Ec2Settings

DEPLOYMENT = "verify"
"""Value of the tag of everything that is launched."""
TYPE = "t3.nano"
"""The smallest that x86-64 images boot on."""
NOWHERE = "https://127.0.0.1:9"
"""Where the machines look for a service: they power themselves off when they have not reached it for a minute."""
MIN_ROOT_GIB = 8
PAUSE_S = 2.0


class Differs(Exception):
    """AWS does something else than the fake."""


class NotReached(Exception):
    """What a rule needs isn't there, because an earlier one failed."""


@dataclass
class Trial:
    """What the rules share.

    key              of the only object that they write: one name, so that what a killed run left is found
    first, second    the machines, once they are launched
    """

    aws: Aws
    provider: Ec2Provider
    settings: Ec2Settings
    region: str
    zone: str
    image: str
    root_gib: int
    root_device: str
    bucket: str
    clock: Clock
    deadline: float
    key: str = "verify/object"
    first: ProviderMachine | None = None
    second: ProviderMachine | None = None

    @classmethod
    def prepare(cls, aws: Aws, settings: Ec2Settings, bucket: str, clock: Clock, deadline: float) -> Trial:
        """In the first region and zone of the settings. Raises AwsError."""
        region, chosen = next(iter(settings.regions.items()))
        image = find_image(aws, region, UBUNTU)
        found = aws.read("ec2", region, "describe_images", ImageIds=[image])["Images"]
        if not found:
            raise AwsError(f"{image} is not in {region}, or this account may not use it.")
        root = RootDisk.of(found[0])
        small = settings.model_copy(
            update={"regions": {region: chosen.model_copy(update={"image": image})}, "wheelhouse": ""}
        )
        return cls(
            aws, Ec2Provider("ec2", small), small, region, next(iter(chosen.subnets)), image,
            max(root.gib, MIN_ROOT_GIB), root.device, bucket, clock, deadline,
        )  # fmt: skip

    def request(self, token: str) -> LaunchRequest:
        tags = {DEPLOYMENT_TAG: DEPLOYMENT, PROVIDER_TAG: "ec2", "job": "verify", "attempt": "1", "slot": "0"}
        return LaunchRequest(
            token=token, region=self.region, zone=self.zone, tags=tags, type=TYPE, market="spot", price="0",
            user_data=BootData(server_url=NOWHERE, machine=UUID(int=0)), disk=LaunchDisk(self.root_gib, 3_000, 125),
        )  # fmt: skip

    def describe(self, machine: ProviderMachine) -> dict[str, Any]:
        """The instance as EC2 describes it. Raises AwsError."""
        found = self.aws.read("ec2", self.region, "describe_instances", InstanceIds=[machine.id])["Reservations"]
        instance: dict[str, Any] = found[0]["Instances"][0]
        return instance

    def listed(self, machine: ProviderMachine) -> ProviderMachine | None:
        """By the provider. Raises OutcomeUnknown."""
        machines = self.provider.list_region(DEPLOYMENT, self.region)
        return next((one for one in machines if one.id == machine.id), None)

    def until(self, patience_s: float, is_so: Callable[[], bool], otherwise: str) -> str:
        """How long it took. Raises Differs."""
        began = self.clock.monotonic()
        end = min(began + patience_s, self.deadline)
        while not is_so():
            if self.clock.monotonic() > end:
                raise Differs(f"{otherwise} within {self.clock.monotonic() - began:.0f} s")
            self.clock.sleep(PAUSE_S)
        return f"after {self.clock.monotonic() - began:.0f} s"

    def delete_object(self) -> None:
        """What the rules of S3 wrote, or those of a run that was killed.

        It stays where AWS refuses that, and costs nothing to speak of.
        """
        try:
            self.aws.write("s3", self.region, "delete_object", Bucket=self.bucket, Key=self.key)
        except AwsError:
            return
