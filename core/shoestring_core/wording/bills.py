# SPDX-License-Identifier: Apache-2.0
"""Holds and bills of machines: conflicts, and the lines of a bill. Amounts are decimal dollars."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_core.wording.reason import Reason
from shoestring_core.wording.units import dollars


@dataclass(frozen=True)
class HoldConflict(Reason):
    code = "hold_conflict"
    machine: str

    def text(self) -> str:
        return f"Another transaction changed or settled the hold of machine {self.machine} at the same time."


@dataclass(frozen=True)
class HoldAlreadyOpen(Reason):
    code = "hold_already_open"
    machine: str

    def text(self) -> str:
        return f"Machine {self.machine} already has an open hold."


@dataclass(frozen=True)
class BillWithoutHold(Reason):
    code = "bill_without_hold"
    machine: str

    def text(self) -> str:
        return f"Machine {self.machine} has a bill but no hold."


@dataclass(frozen=True)
class Usage(Reason):
    """A line of a bill. `clock_shift_us`: how far the clock was set meanwhile.

    price, highest  dollars per hour: the lowest, and the highest if it changed meanwhile
    """

    code = "usage"
    used_us: int
    type: str
    market: str
    price: str
    clock_shift_us: int = 0
    highest: str | None = None

    def text(self) -> str:
        price = f"${self.price}" if self.highest is None else f"${self.price} to ${self.highest}"
        used = f"{self.used_us / 1e6:.6f} s of {self.type} ({self.market}) at {price} per hour"
        if not self.clock_shift_us:
            return used
        direction = "back" if self.clock_shift_us < 0 else "forward"
        return (
            f"{used}; the computer's clock was set {direction} by {abs(self.clock_shift_us) / 1e6:.0f} s meanwhile, "
            "which is not billed"
        )


@dataclass(frozen=True)
class FreeInterruption(Reason):
    """A spot machine that its provider took back so soon that it bills nothing for it."""

    code = "free_interruption"
    used_us: int
    type: str

    def text(self) -> str:
        return f"Free: the provider interrupted this {self.type} in its first hour, after {self.used_us / 1e6:.0f} s."


@dataclass(frozen=True)
class ExtraUsage(Reason):
    """What is billed besides the machine. `monthly`: dollars for 30 days."""

    code = "extra_usage"
    what: str
    used_us: int
    monthly: str

    def text(self) -> str:
        return f"{self.used_us / 1e6:.0f} s of {self.what} at ${self.monthly} per 30 days (estimated)"


@dataclass(frozen=True)
class NeverRan(Reason):
    code = "never_ran"

    def text(self) -> str:
        return "It never ran."


@dataclass(frozen=True)
class NotBilled(Reason):
    code = "not_billed"

    def text(self) -> str:
        return "An estimate that is not part of the bill: given back."


@dataclass(frozen=True)
class JobSettled(Reason):
    code = "job_settled"

    def text(self) -> str:
        return "All machines of the job are billed."


@dataclass(frozen=True)
class Overrun(Reason):
    """A machine cost more than was held for it."""

    code = "overrun"
    machine: str
    amount: str

    def text(self) -> str:
        return f"Machine {self.machine} cost {dollars(self.amount)} more than was held for it."
