# SPDX-License-Identifier: Apache-2.0
"""The fake EC2 and S3 of `shoestring demo --provider ec2`, and how the service is told to use them."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from shoestring_core.machine_network import COMPUTER

from shoestring.connections import open_http
from shoestring.supervisor import StartupError

SETTINGS_FILE = "fake-ec2.json"


def require_installed() -> None:
    """Raises StartupError if it isn't."""
    if importlib.util.find_spec("moto") is None:
        raise StartupError("The fake EC2 is not installed. Run: pip install 'shoestring[server,fake-ec2]'")


def command(data: Path) -> list[str]:
    """The process of a fake EC2 whose machines are those of the machine host in this data folder."""
    module = [sys.executable, "-m", "shoestring_worker.fake_ec2"]
    machinehost = data / "cloud" / "machinehost.json"
    options = ["--machinehost", str(machinehost), "--settings", str(data / SETTINGS_FILE)]
    return [*module, "--host", COMPUTER, "--network", "auto", *options]


@dataclass(frozen=True)
class FakeEc2:
    """One that runs, as it describes itself in its settings file."""

    url: str
    access_key_id: str
    regions: dict[str, object]
    bucket: str

    @classmethod
    def of(cls, data: Path) -> FakeEc2:
        settings = json.loads((data / SETTINGS_FILE).read_text())
        return cls(settings["endpoint_url"], settings["access_key_id"], settings["regions"], settings["bucket"])

    def environment(self, of_service: Mapping[str, str]) -> dict[str, str]:
        """The environment of API and worker: that of the service, with the fake in place of AWS."""
        kept = {name: value for name, value in of_service.items() if not name.startswith("AWS_")}
        return kept | {
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_CONFIG_FILE": os.devnull,
            "SHOESTRING_OBJECT_STORE": f"s3://{self.bucket}/demo",
            "SHOESTRING_OBJECT_STORE_ENDPOINT_URL": self.url,
            "SHOESTRING_PROVIDERS": "ec2",
            "SHOESTRING_EC2_ENDPOINT_URL": self.url,
            "SHOESTRING_EC2_REGIONS": json.dumps(self.regions),
            "SHOESTRING_EC2_SIMULATED": "true",
            "SHOESTRING_EC2_PYTHON": sys.executable,
        }

    def interrupt(self, instance: str, notice_s: float) -> None:
        """Interrupt an instance after its notice has stood in its metadata for so long."""
        with self._open() as http:
            http.post("/_fake/interrupt", json={"instance": instance, "notice_s": notice_s}).raise_for_status()

    def left(self) -> dict[str, int]:
        """How many instances, volumes and spot requests there are that have not ended."""
        with self._open() as http:
            left: dict[str, list[str]] = http.get("/_fake/left").raise_for_status().json()
        return {kind: len(ids) for kind, ids in left.items()}

    def _open(self) -> httpx.Client:
        return open_http(self.url, headers={"Authorization": f"Bearer {self.access_key_id}"}, timeout=5)
