# SPDX-License-Identifier: Apache-2.0
"""What `shoestring aws up` passes to the machine that runs the service, and what that machine leaves in the bucket."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict
from shoestring_core.wheelhouse import file_key, manifest_key

from shoestring_worker.providers.ec2 import user_data
from shoestring_worker.providers.ec2.account.ownership import object_store

LOGIN_KEY = "service-machine/login.json"
"""Of the object that the machine leaves in the account's bucket."""
MODULE = "shoestring_worker.providers.ec2.service_machine"
SOURCES = {module: user_data.read_source(module) for module in (user_data.WHEELS, "service_script")}


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


def render(boot: ServiceBoot, python: str, wheelhouse: str) -> str:
    """The user data of its machine.

    python      of the environment on the image
    wheelhouse  name of the one in the bucket whose environment is installed in its place; "": none
    """
    prefix = object_store(boot.bucket).removeprefix(f"s3://{boot.bucket}/") + "/"
    keys = {
        "name": wheelhouse, "manifest": prefix + manifest_key(wheelhouse), "files": prefix + file_key("")
    }  # fmt: skip
    arguments = {
        "boot": boot.model_dump(), "python": python, "wheelhouse": keys if wheelhouse else {}, "module": MODULE,
        "login_key": LOGIN_KEY,
    }  # fmt: skip
    return user_data.pack(SOURCES, arguments)
