# SPDX-License-Identifier: Apache-2.0
"""Where machines may be launched on EC2, and from which image: SHOESTRING_EC2_… variables, explained in docs/aws.md."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, PROVIDER_TAG

from shoestring_worker.settings import Price

_PROFILE_NAME = r"[\w+=,.@-]{1,128}"
_PROFILE = re.compile(
    rf"({_PROFILE_NAME}|arn:aws[a-z-]*:iam::\d{{12}}:instance-profile/([!-~]+/)?{_PROFILE_NAME})", re.ASCII
)
"""docs.aws.amazon.com/IAM/latest/APIReference/API_CreateInstanceProfile.html"""


_REGION = r"^[a-z]{2}(-[a-z]+)+-\d{1,2}$"


class Ec2Region(BaseModel):
    """One region's part of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Annotated[str, Field(pattern=r"^ami-[0-9a-f]{8,17}$")]
    """An AMI for x86-64 with an NVIDIA driver, and with our environment unless there is a wheelhouse."""
    subnets: Annotated[dict[str, Annotated[str, Field(pattern=r"^subnet-[0-9a-f]{8,17}$")]], Field(min_length=1)]
    """By Availability Zone: the subnet that machines are launched in."""
    security_groups: tuple[Annotated[str, Field(pattern=r"^sg-[0-9a-f]{8,17}$")], ...] = ()
    """None: the default group of the subnet's VPC."""


def _url_or_none(given: str | None) -> str | None:
    return given or None


class Ec2Endpoint(BaseSettings):
    """What is known without the settings of a service."""

    model_config = SettingsConfigDict(env_prefix="SHOESTRING_EC2_", frozen=True, extra="ignore")

    endpoint_url: Annotated[
        Annotated[str, Field(pattern=r"^https?://[^/\s]+")] | None, BeforeValidator(_url_or_none)
    ] = None  # fmt: skip
    """A server that speaks EC2's API, in place of AWS's."""


RESERVED_TAGS = (DEPLOYMENT_TAG, PROVIDER_TAG, "job", "attempt", "slot", "shoestring-account", "name")
"""In lower case: by these the reconciler, panic and teardown know what is ours."""
MAX_TAGS = 40
"""Of 50 that a resource may have: docs.aws.amazon.com/tag-editor/latest/userguide/best-practices-and-strats.html"""
_TAG_TEXT = re.compile(r"[\w\s+\-=.:/@]*")
"""What every service of AWS takes, by the same page."""


def _read_tags(given: str | dict[str, str]) -> dict[str, str]:
    """Of `key=value,key=value`. Raises ValueError."""
    if isinstance(given, dict):
        return given
    tags: dict[str, str] = {}
    for pair in filter(None, map(str.strip, given.split(","))):
        key, is_pair, value = (part.strip() for part in pair.partition("="))
        if not (is_pair and key):
            raise ValueError(f"{pair!r} is not key=value, such as cost-centre=4711,project=vision")
        if key in tags:
            raise ValueError(f"{key} is there twice")
        tags[key] = value
    return tags


class Ec2Settings(Ec2Endpoint):
    regions: Annotated[dict[Annotated[str, Field(pattern=_REGION)], Ec2Region], Field(min_length=1)]
    simulated: bool = False
    """That server is a fake: nobody is charged."""
    python: Annotated[str, Field(pattern=r"^/[^\n]+$")] = "/opt/shoestring/bin/python"
    """Of the environment that the images have, with shoestring-trainer[train]."""
    wheelhouse: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """Name of the one in the object store that machines install; "": none, the images have an environment."""
    data_role: str = ""
    """Name or ARN of the instance profile of machines whose job's data are in S3; "": none, and never any other's."""
    tags: Annotated[dict[str, str], NoDecode, BeforeValidator(_read_tags), Field(max_length=MAX_TAGS)] = {}
    """The owner's, such as cost allocation tags: on everything that is launched, from its birth on."""
    disk_gib: Annotated[int, Field(ge=8, le=16_384)] = 100
    disk_iops: Annotated[int, Field(ge=3_000, le=16_000)] = 3_000
    disk_mib_per_s: Annotated[int, Field(ge=125, le=1_000)] = 250
    max_machines: Annotated[int, Field(ge=1)] = 4
    """Machines at once, of all jobs together: a bound of our own besides the account's quotas."""
    max_price: Price = "2.00"
    """Dollars per hour: a type that costs more on demand is not offered."""

    @field_validator("data_role")
    @classmethod
    def _is_an_instance_profile(cls, given: str) -> str:
        if given and not _PROFILE.fullmatch(given):
            raise ValueError(
                f"{given} is not the name of an instance profile, nor its ARN, such as "
                "arn:aws:iam::123456789012:instance-profile/training-data"
            )
        return given

    @field_validator("tags")
    @classmethod
    def _are_tags_that_aws_takes(cls, given: dict[str, str]) -> dict[str, str]:
        for key, value in given.items():
            if key.lower() in RESERVED_TAGS or key.lower().startswith("aws:"):
                raise ValueError(f"the tag {key} is set by Shoestring or AWS: choose another key")
            if len(key) > 128 or len(value) > 256 or not (_TAG_TEXT.fullmatch(key) and _TAG_TEXT.fullmatch(value)):
                raise ValueError(
                    f"the tag {key}={value} is nothing that AWS takes: a key of at most 128 characters and a value of "
                    "at most 256, of letters, digits, spaces and + - = . _ : / @"
                )
        return given

    @model_validator(mode="after")
    def _zones_are_availability_zones(self) -> Self:
        for region, settings in self.regions.items():
            for zone in settings.subnets:
                if not (zone.startswith(region) and len(zone) == len(region) + 1 and zone[-1].isalpha()):
                    raise ValueError(
                        f"{zone} is not an Availability Zone of {region}, such as {region}a. "
                        "Local and Wavelength Zones are not supported: they have prices of their own."
                    )
        return self


def read_settings() -> Ec2Settings:
    """Of the environment. Raises ValueError."""
    try:
        return Ec2Settings()
    except ValidationError as error:
        if any(each["type"] == "missing" and each["loc"] == ("regions",) for each in error.errors()):
            raise ValueError("SHOESTRING_EC2_REGIONS is not set.") from error
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ValueError(f"SHOESTRING_EC2_REGIONS and the other SHOESTRING_EC2_ settings: {problems}.") from error
    except SettingsError as error:  # the regions' value alone is parsed
        raise ValueError(
            'SHOESTRING_EC2_REGIONS is not JSON, such as {"us-east-1": {"image": …, "subnets": …}}. In a shell it is '
            "written in single quotes, or it loses its own."
        ) from error
