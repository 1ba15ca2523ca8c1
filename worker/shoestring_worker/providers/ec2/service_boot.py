# SPDX-License-Identifier: Apache-2.0
"""What `shoestring aws up` tells the machine that runs the service, and what that machine leaves in the bucket."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

LOGIN_KEY = "service-machine/login.json"
"""Of the object that the machine leaves in the account's bucket."""
MODULE = "shoestring_worker.providers.ec2.service_machine"


class ServiceBoot(BaseModel):
    """In the machine's user data. There is no secret in it.

    launch       the idempotency token of the machine
    volume       id of the volume that keeps the service's data
    url          https://ADDRESS:PORT
    budget       limit of the team's budget in dollars; "": as it is
    environment  of the service
    hosting      name of the machine and dollars per hour: the service's SHOESTRING_HOSTING, without its start
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    launch: str
    volume: str
    url: str
    bucket: str
    region: str
    budget: str
    environment: dict[str, str]
    hosting: dict[str, str]


class ServiceLogin(BaseModel):
    """How to reach the service, renewed every few minutes. `code`: signs in once; `problem`: why it does not run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    launch: str
    state: Literal["running", "failed"]
    url: str = ""
    ca: str = ""
    code: str = ""
    problem: str = ""


def render(boot: ServiceBoot, python: str) -> str:
    """The user data: cloud-init runs it as root when the machine boots. It ends in powering off, which terminates."""
    return f"""#!/bin/sh
{python} -P -m {MODULE} <<'BOOT' &
{boot.model_dump_json()}
BOOT
service=$!
trap 'kill -TERM $service' TERM
wait $service
wait $service
poweroff
"""
