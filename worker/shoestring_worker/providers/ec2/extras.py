# SPDX-License-Identifier: Apache-2.0
"""What AWS bills besides a machine, by its list prices in us-east-1."""

from __future__ import annotations

from decimal import Decimal

from shoestring_core.decide.billing import Extra
from shoestring_core.decide.disks import billed_as
from shoestring_core.decide.offers import Disk


def gp3(gib: int, iops: int, mib_per_s: int) -> Disk:
    """Each GiB a month, IOPS above 3,000 and MiB/s above 125: aws.amazon.com/ebs/pricing, in us-east-1.

    The bounds are docs.aws.amazon.com/ebs/latest/userguide/general-purpose.html, as they were before December 2025:
    larger ones exist since, not in all regions.
    """
    return Disk(
        kind="gp3",
        gib=gib,
        iops=iops,
        mib_per_s=mib_per_s,
        smallest=(8, 3_000, 125),
        largest=(16_384, 16_000, 1_000),
        iops_per_gib=500,
        mib_per_s_per_iops="0.25",
        per_gib="0.08",
        per_iops="0.005",
        per_mib_per_s="0.04",
    )


def gp3_disk(gib: int, iops: int, mib_per_s: int) -> Extra:
    """The line of a bill of such a disk."""
    return billed_as(gp3(gib, iops, mib_per_s))


def public_ipv4() -> Extra:
    """$0.005 an hour, used or not: aws.amazon.com/vpc/pricing, "Public IPv4 addresses"."""
    return Extra("address", "a public IPv4 address", str(Decimal("0.005") * 720))
