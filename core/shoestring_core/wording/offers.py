# SPDX-License-Identifier: Apache-2.0
"""Why machines of a provider are not offered."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_core.wording.reason import Reason
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
    """`region`: the only one whose prices are known."""

    code = "prices_unknown"
    region: str

    def text(self) -> str:
        return f"On-demand prices are known in {self.region} only, and what a machine may cost must be known before."


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
        if machines := self.vcpus // self.each:
            return f"{quota}, at most {machines} × {self.type} at once."
        return (
            f"{quota}, so no machine can be launched: {self.type} needs {self.each}. "
            f"Ask for more at {self.raised_at}; jobs wait for it."
        )
