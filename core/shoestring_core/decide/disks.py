# SPDX-License-Identifier: Apache-2.0
"""The disk of a machine: what a job may have, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from math import ceil

from shoestring_core.decide.billing import Extra
from shoestring_core.decide.offers import Disk, Offer
from shoestring_core.decide.requirements import DiskNeed
from shoestring_core.wording.units import disk_text

BILL_LINE = "disk"


def billed_as(disk: Disk) -> Extra:
    """The disk's line of a bill."""
    _, free_iops, free_mib_per_s = disk.smallest
    performance = max(0, disk.iops - free_iops) * Decimal(disk.per_iops)
    performance += max(0, disk.mib_per_s - free_mib_per_s) * Decimal(disk.per_mib_per_s)
    monthly = disk.gib * Decimal(disk.per_gib) + performance
    return Extra(BILL_LINE, disk_text(disk.kind, disk.gib, disk.iops, disk.mib_per_s), str(monthly))


def with_disk(offer: Offer, need: DiskNeed) -> Offer | None:
    """The offer with the disk that is needed, in its bill too; None if its provider has no such disk.

    What a job doesn't say stays as it is offered, unless what it says needs more.
    """
    disk = offer.disk and fit(offer.disk, need)
    if disk is None:
        return None
    others = tuple(extra for extra in offer.billing.extras if extra.line != BILL_LINE)
    return replace(offer, disk=disk, billing=replace(offer.billing, extras=(billed_as(disk), *others)))


def fit(disk: Disk, need: DiskNeed) -> Disk | None:
    """The disk with what is needed; None if that exceeds a bound."""
    smallest_gib, smallest_iops, smallest_mib_per_s = disk.smallest
    per_iops = Decimal(disk.mib_per_s_per_iops)
    mib_per_s = max(smallest_mib_per_s, need.mib_per_s or disk.mib_per_s)
    iops = max(smallest_iops, need.iops or max(disk.iops, ceil(mib_per_s / per_iops)))
    gib = max(smallest_gib, need.gib or max(disk.gib, ceil(iops / disk.iops_per_gib)))
    if need.mib_per_s is None:
        mib_per_s = min(mib_per_s, int(iops * per_iops))
    if need.iops is None:
        iops = min(iops, gib * disk.iops_per_gib)
    wanted = (gib, iops, mib_per_s)
    too_large = any(one > most for one, most in zip(wanted, disk.largest, strict=True))
    if too_large or iops > gib * disk.iops_per_gib or mib_per_s > iops * per_iops:
        return None
    return replace(disk, gib=gib, iops=iops, mib_per_s=mib_per_s)
