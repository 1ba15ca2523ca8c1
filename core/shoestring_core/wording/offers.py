# SPDX-License-Identifier: Apache-2.0
"""Why machines of a provider are not offered."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_core.wording.reason import NestedReason, Reason
from shoestring_core.wording.units import counted


@dataclass(frozen=True)
class OtherArchitecture(Reason):
    code = "other_architecture"
    architecture: str

    def text(self) -> str:
        return f"Its processor is {self.architecture}; the trainer's packages are built for x86-64."


@dataclass(frozen=True)
class OtherGpuMaker(Reason):
    code = "other_gpu_maker"
    maker: str

    def text(self) -> str:
        return f"Its accelerators are made by {self.maker}; the trainer needs CUDA."


@dataclass(frozen=True)
class GpuTooOld(Reason):
    """CUDA 13, for which the pinned PyTorch is built, begins at compute capability 7.5."""

    code = "gpu_too_old"
    compute_capability: str

    def text(self) -> str:
        return f"Its GPU has compute capability {self.compute_capability}; the pinned PyTorch needs 7.5 or higher."


@dataclass(frozen=True)
class SizeUnknown(Reason):
    code = "size_unknown"

    def text(self) -> str:
        return "The price list does not say how many vCPUs and how much memory it has."


@dataclass(frozen=True)
class PricesUnknown(Reason):
    """`region`: the only one whose prices a built-in list has."""

    code = "prices_unknown"
    region: str

    def text(self) -> str:
        return (
            f"The built-in list has on-demand prices of {self.region} only; a worker that serves the provider reads "
            "those of its regions."
        )


@dataclass(frozen=True)
class RegionNotOffered(Reason):
    """`served`: workers serve the provider."""

    code = "region_not_offered"
    provider: str
    region: str
    served: bool

    def text(self) -> str:
        has = f"{self.provider} has machines in {self.region}"
        if self.served:
            return f"{has}, but this service isn't set up for it, or can't read its prices."
        return f"{has}, but no worker of this service serves {self.provider}."


@dataclass(frozen=True)
class UnknownName(Reason):
    """Nobody has something of this name. `what`: GPU | machine type | region | zone; `nearest`: probably meant."""

    code = "unknown_name"
    what: str
    given: str
    nearest: str | None
    among: tuple[str, ...]

    def text(self) -> str:
        unknown = f"No {self.what} called {self.given} is known"
        if self.nearest:
            return f"{unknown}. Did you mean {self.nearest}?"
        return f"{unknown}; there are {', '.join(self.among)}." if self.among else f"{unknown}."


@dataclass(frozen=True)
class LeftOutOffer(Reason):
    """`reason`: why the machines of this name are not offered by any provider."""

    code = "left_out_offer"
    name: str
    reason: NestedReason

    def text(self) -> str:
        return f"{self.name} is left out. {self.reason.text()}"


@dataclass(frozen=True)
class ListedOnly(Reason):
    """A provider's price list has it, and it can't be rented here. `served`: workers serve that provider."""

    code = "listed_only"
    provider: str
    type: str
    gpus: str
    price: str
    served: bool

    def text(self) -> str:
        listed = f"{self.provider} has {self.type} ({self.gpus}) for ${self.price} per hour on demand"
        if self.served:
            return f"{listed}, which the settings of this service leave out: by its price, region or zone."
        return f"{listed}, but no worker of this service serves {self.provider}."


@dataclass(frozen=True)
class NoDiskChoice(Reason):
    code = "no_disk_choice"
    provider: str

    def text(self) -> str:
        return f"Machines of {self.provider} have no disk that a job could choose."


@dataclass(frozen=True)
class DiskBounds(Reason):
    """GiB, operations per second, MiB per second."""

    code = "disk_bounds"
    provider: str
    kind: str
    largest: tuple[int, int, int]
    iops_per_gib: int
    mib_per_s_per_iops: str

    def text(self) -> str:
        gib, iops, mib_per_s = self.largest
        return (
            f"Disks of {self.provider} ({self.kind}) have at most {gib:,} GiB, {iops:,} IOPS ({self.iops_per_gib} for "
            f"each GiB) and {mib_per_s:,} MiB/s ({self.mib_per_s_per_iops} for each IOPS)."
        )


@dataclass(frozen=True)
class DearerThanLimit(Reason):
    """`cost` and `limit`: dollars an hour of all `nodes` machines, the cheapest that would do."""

    code = "dearer_than_limit"
    nodes: int
    type: str
    cost: str
    limit: str

    def text(self) -> str:
        machines = f"{self.nodes} × {self.type}" if self.nodes > 1 else self.type
        return f"At least ${self.cost} per hour ({machines}) would be needed; limits.rate is ${self.limit}."


@dataclass(frozen=True)
class AccountQuota(Reason):
    """What the account may run at once. `type`: the smallest machine that counts against it; `each`: its vCPUs."""

    code = "account_quota"
    provider: str
    region: str
    quota: str
    vcpus: int
    type: str
    each: int
    raised_at: str

    def text(self) -> str:
        quota = f'{self.provider} in {self.region}, quota "{self.quota}": {counted(self.vcpus, "vCPU")}'
        if machines := self.vcpus // max(1, self.each):
            return f"{quota}, at most {machines} × {self.type} at once."
        return (
            f"{quota}, so no machine can be launched: {self.type} needs {self.each}. "
            f"Ask for more at {self.raised_at}; jobs wait for it."
        )


@dataclass(frozen=True)
class NearestOffer:
    """The offer that comes nearest to what a job requires, and the fields that it doesn't meet, of `resources` for the
    most part: `limits.rate`."""

    type: str
    provider: str
    place: str
    gpus: str
    market: str
    price: str
    missed: tuple[str, ...]

    def text(self) -> str:
        where = f"of {self.provider}" if self.place == self.provider else f"of {self.provider} in {self.place}"
        what = f"{self.gpus}, {self.market.replace('_', ' ')}, ${self.price} per hour"
        fields = [name for name in self.missed if "." not in name]
        of_resources = (f"resources.{_joined(tuple(fields))}",) if fields else ()
        others = [name for name in self.missed if "." in name]
        change = _joined((*of_resources, *others))
        return f"The nearest is {self.type} {where} ({what}): change {change} to get it."


def _joined(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
