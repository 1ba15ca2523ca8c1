# SPDX-License-Identifier: Apache-2.0
"""What AWS bills besides a machine, by its list prices in us-east-1."""

from __future__ import annotations

from decimal import Decimal

from shoestring_core.decide.billing import Extra


def gp3_disk(gib: int, iops: int, mib_per_s: int) -> Extra:
    """Each GiB a month, IOPS above 3,000 and MiB/s above 125: aws.amazon.com/ebs/pricing, in us-east-1."""
    performance = max(0, iops - 3_000) * Decimal("0.005") + max(0, mib_per_s - 125) * Decimal("0.04")
    monthly = gib * Decimal("0.08") + performance
    return Extra("disk", f"{gib} GiB of gp3 with {iops} IOPS and {mib_per_s} MiB/s", str(monthly))


def public_ipv4() -> Extra:
    """$0.005 an hour, used or not: aws.amazon.com/vpc/pricing, "Public IPv4 addresses"."""
    return Extra("address", "a public IPv4 address", str(Decimal("0.005") * 720))
