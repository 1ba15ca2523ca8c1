# SPDX-License-Identifier: Apache-2.0
"""The fake EC2 for tests: one process for each process of tests, started when the first test asks for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import boto3
import httpx
from botocore.config import Config
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, PROVIDER_TAG
from shoestring_core.launch_request import LaunchRequest
from shoestring_core.wire import BootData
from shoestring_worker.providers.ec2.provider import Ec2Provider
from shoestring_worker.providers.ec2.settings import Ec2Region, Ec2Settings

from tests.servers import PATIENCE_S

ROOT = Path(__file__).parents[3]
IMAGE, UBUNTU_IMAGE = "ami-00000000000000001", "ami-00000000000000002"
REGION, ZONE, OTHER_REGION = "us-east-1", "us-east-1a", "eu-west-1"
UNLISTED = 1_000_000
"""A listing lag that no test reaches the end of: a machine is missing until the test sets the lag to 0."""
MACHINE = UUID(int=1)


@dataclass
class FakeAws:
    """`url`: where it serves."""

    process: subprocess.Popen[str]
    url: str
    _control: httpx.Client
    _clients: dict[str, Any]
    access_key: str = "any"
    settings_file: Path = Path()

    @classmethod
    def start(cls, *options: str, settings: Path | None = None) -> FakeAws:
        """`settings`: a file for the fake to write."""
        written = [] if settings is None else ["--settings", str(settings)]
        process = subprocess.Popen(
            [sys.executable, "-m", "shoestring_worker.fake_ec2", *options, *written],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("core", "worker"))},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127."), "The fake EC2 did not start. Run `make setup`: it installs moto."
        if settings is None:
            return cls(process, url, httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False), {})
        key = json.loads(settings.read_text())["access_key_id"]
        headers = {"Authorization": f"Bearer {key}"}
        control = httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False, headers=headers)
        return cls(process, url, control, {}, key, settings)

    def stop(self) -> None:
        self._control.close()
        self.process.kill()
        self.process.wait(timeout=PATIENCE_S)

    def control(self, what: str, **body: object) -> None:
        self._control.post(f"/_fake/{what}", json=body).raise_for_status()

    def read(self, what: str) -> Any:
        return self._control.get(f"/_fake/{what}").raise_for_status().json()

    def written(self) -> Any:
        """The settings that it wrote."""
        return json.loads(self.settings_file.read_text())

    def fault(self, kind: str, action: str = "RunInstances", **more: object) -> None:
        self.control("faults", action=action, kind=kind, **more)

    def calls(self, action: str) -> list[dict[str, Any]]:
        """What was asked with this action, oldest first."""
        return [call for call in self.read("calls") if call["action"] == action]

    def ec2(self, region: str = REGION) -> Any:
        """A plain client of boto3: evidence that doesn't come through our provider."""
        if region not in self._clients:
            self._clients[region] = self._client(region, PATIENCE_S)
        return self._clients[region]

    def s3(self, region: str = REGION) -> Any:
        """A plain client of boto3."""
        credentials = {"aws_access_key_id": self.access_key, "aws_secret_access_key": "none"}
        return boto3.client("s3", region_name=region, endpoint_url=self.url, **credentials)

    def make_data_role(self, name: str, bucket: str) -> str:
        return make_data_role(self.url, self.access_key, name, bucket)

    def impatient_client(self, read_timeout_s: float) -> Any:
        return self._client(REGION, read_timeout_s)

    def client_with_key(self, access_key: str) -> Any:
        return self._client(REGION, PATIENCE_S, access_key)

    def _client(self, region: str, read_timeout_s: float, access_key: str | None = None) -> Any:
        config = Config(retries={"total_max_attempts": 1}, read_timeout=read_timeout_s)
        credentials = {"aws_access_key_id": access_key or self.access_key, "aws_secret_access_key": "none"}
        return boto3.client("ec2", region_name=region, endpoint_url=self.url, config=config, **credentials)

    def instances(self, region: str = REGION, states: tuple[str, ...] = ("pending", "running")) -> list[dict[str, Any]]:
        reservations = self.ec2(region).describe_instances()["Reservations"]
        instances = [instance for reservation in reservations for instance in reservation["Instances"]]
        return [instance for instance in instances if instance["State"]["Name"] in states]

    def subnet(self, zone: str = ZONE) -> str:
        chosen = [{"Name": "availability-zone", "Values": [zone]}]
        return self.ec2(zone[:-1]).describe_subnets(Filters=chosen)["Subnets"][0]["SubnetId"]

    def settings(self, *zones: str, **changed: Any) -> Ec2Settings:
        regions: dict[str, dict[str, str]] = {}
        for zone in zones or (ZONE,):
            regions.setdefault(zone[:-1], {})[zone] = self.subnet(zone)
        configured = {region: Ec2Region(image=IMAGE, subnets=subnets) for region, subnets in regions.items()}
        return Ec2Settings(regions=configured, endpoint_url=self.url, **changed)

    def provider(self, *zones: str, settings: Ec2Settings | None = None, **options: Any) -> Ec2Provider:
        """Of the settings, or of those for these zones. It waits for answers as long as a busy machine needs."""
        return Ec2Provider("ec2", settings or self.settings(*zones), **{"read_timeout_s": PATIENCE_S} | options)


def launch_request(token: str = "token-1", deployment: str = "us", zone: str = ZONE, **changed: Any) -> LaunchRequest:
    fields = {
        "token": token,
        "region": zone[:-1],
        "zone": zone,
        "tags": {DEPLOYMENT_TAG: deployment, PROVIDER_TAG: "ec2", "job": "j", "attempt": "1", "slot": "0"},
        "type": "g5.xlarge",
        "market": "spot",
        "price": "0.4125",
        "user_data": BootData(server_url="http://127.0.0.1:9", machine=MACHINE),
    }
    return LaunchRequest(**fields | changed)


def make_data_role(url: str, access_key: str, name: str, bucket: str) -> str:
    """A role that reads this bucket, in an instance profile of its name, by the guide's commands. Returns its ARN."""
    credentials = {"aws_access_key_id": access_key, "aws_secret_access_key": "none"}
    iam = boto3.client("iam", region_name=REGION, endpoint_url=url, **credentials)
    for_ec2 = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    role = iam.create_role(
        RoleName=name, AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [for_ec2]})
    )["Role"]
    reads = {
        "Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }  # fmt: skip
    policy = json.dumps({"Version": "2012-10-17", "Statement": [reads]})
    iam.put_role_policy(RoleName=name, PolicyName="read", PolicyDocument=policy)
    iam.create_instance_profile(InstanceProfileName=name)
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return str(role["Arn"])
