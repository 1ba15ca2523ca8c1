# SPDX-License-Identifier: Apache-2.0
"""`resources.gpu`: alternatives such as `A10G`, `A100:8`, `A100:80GB:8`, `24GB..`, `24GB..48GB:4`, `any`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ALTERNATIVE = re.compile(
    r"(?:(?P<any>any)|(?P<model>[A-Za-z][A-Za-z0-9_-]{0,30}))?"
    r"(?:(?:^|:)(?P<least>[1-9][0-9]{0,3})GB(?:(?P<range>\.\.)(?:(?P<most>[1-9][0-9]{0,3})GB)?)?)?"
    r"(?:(?<=.):(?P<count>[1-9][0-9]?))?",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class GpuChoice:
    """GPUs that will do: what each machine has must meet all of it.

    model           as the maker names it, in any case; None: any
    least, most_gb  memory of each GPU in GB, as makers give it; None: any
    count           GPUs of a machine; None: at least one
    """

    model: str | None = None
    least_gb: int | None = None
    most_gb: int | None = None
    count: int | None = None

    @property
    def text(self) -> str:
        """As it is written in a spec."""
        memory = None
        if self.least_gb is not None:
            upper = "" if self.most_gb == self.least_gb else ".." if self.most_gb is None else f"..{self.most_gb}GB"
            memory = f"{self.least_gb}GB{upper}"
        parts = (self.model or (None if memory else "any"), memory, self.count)
        return ":".join(str(part) for part in parts if part is not None)

    def accepts(self, model: str | None, memory_gb: int, count: int) -> bool:
        """Whether a machine with so many of these GPUs will do."""
        return (
            model is not None
            and self.accepts_model(model)
            and (self.least_gb or 0) <= memory_gb
            and (self.most_gb is None or memory_gb <= self.most_gb)
            and self.count in (None, count)
        )

    def accepts_model(self, model: str) -> bool:
        return self.model is None or self.model.lower() == model.lower()


def parse_gpus(text: str) -> tuple[GpuChoice, ...]:
    """The alternatives in the text of a spec's `resources.gpu`; none for `none`. Raises ValueError."""
    return () if text == "none" else tuple(parse_gpu(each.strip()) for each in text.split(","))


def parse_gpu(text: str) -> GpuChoice:
    """Raises ValueError for what isn't an alternative of `resources.gpu`."""
    found = _ALTERNATIVE.fullmatch(text)
    if found is None or not text or (found["model"] or "").lower() == "none":
        raise ValueError(f"{text!r} is no choice of GPUs")
    least, most = found["least"], found["most"]
    if least and most and int(most) < int(least):
        raise ValueError(f"{text!r} ends with less memory than it begins with")
    return GpuChoice(
        model=found["model"],
        least_gb=int(least) if least else None,
        most_gb=int(most) if most else None if found["range"] or not least else int(least),
        count=int(found["count"]) if found["count"] else None,
    )
