# SPDX-License-Identifier: Apache-2.0
"""How `shoestring demo --provider ec2` starts the fake EC2 and the service that uses it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from shoestring import demo, fake_ec2
from shoestring.supervisor import StartupError

REGIONS = {"us-east-1": {"image": "ami-1", "subnets": {"us-east-1a": "subnet-1"}}}


def test_the_service_calls_the_fake_with_its_key_and_with_nothing_of_the_user_s_account(tmp_path: Path) -> None:
    written = {"endpoint_url": "http://127.0.0.1:1", "access_key_id": "key", "regions": REGIONS, "bucket": "fake"}
    (tmp_path / fake_ec2.SETTINGS_FILE).write_text(json.dumps(written))
    of_user = {
        "SHOESTRING_OBJECT_STORE": "s3://company",
        "AWS_PROFILE": "company",
        "AWS_SESSION_TOKEN": "real",
        "AWS_ACCESS_KEY_ID": "real",
        "PATH": "/bin",
    }
    environment = fake_ec2.FakeEc2.of(tmp_path).environment(of_user | {"SHOESTRING_PROVIDERS": "local"})
    assert (environment["PATH"], environment["SHOESTRING_PROVIDERS"]) == ("/bin", "ec2")
    assert environment["SHOESTRING_EC2_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert environment["SHOESTRING_OBJECT_STORE_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert environment["SHOESTRING_OBJECT_STORE"] == "s3://fake/demo"
    assert json.loads(environment["SHOESTRING_EC2_REGIONS"]) == REGIONS
    assert {name for name in environment if name.startswith("AWS_")} == {
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CONFIG_FILE",
    }  # fmt: skip
    assert environment["AWS_ACCESS_KEY_ID"] == "key"


def test_without_the_fake_the_demo_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    options = demo.DemoOptions("ec2", data=tmp_path / "data")
    with pytest.raises(StartupError, match=r"shoestring\[server,fake-ec2\]"):
        demo.run(options, report=print, console=None, interrupts=lambda: 0, on_summary=print)
    assert list(tmp_path.iterdir()) == [], "nothing was started"
