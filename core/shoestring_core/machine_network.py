# SPDX-License-Identifier: Apache-2.0
"""Whether the machine host's machines can have networks of their own, and where they reach this computer then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMPUTER = "127.83.0.1"
"""This computer, for itself and for its machines. It is on loopback: nobody else reaches what listens there."""


@dataclass(frozen=True)
class NetworkStatus:
    """Why machines can't have networks of their own, "" if they can; and a line to type, if one helps."""

    problem: str = ""
    remedy: str = ""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> NetworkStatus:
        """From the machine host's answer."""
        return cls(str(told["problem"]), str(told["remedy"]))

    def refusal(self) -> str:
        advice = f" To change that: {self.remedy}" if self.remedy else ""
        return f"Machines can't have networks of their own here ({self.problem}).{advice}"
