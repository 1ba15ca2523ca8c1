# SPDX-License-Identifier: Apache-2.0
"""When a queued job is expected to start, and for how much more it would start now."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pydantic import FiniteFloat

from shoestring_core.wording.reason import NestedReason, Reason
from shoestring_core.wording.units import counted, dollars

DAY_S = 86_400


@dataclass(frozen=True)
class Outlook(Reason):
    """`elsewhere`: the offer on which it would start now if it took any; None: none has room, or no budget."""

    code = "outlook"
    expected: NestedReason
    elsewhere: NestedReason | None = None

    def text(self) -> str:
        if self.elsewhere is None:
            return self.expected.text()
        expected = self.expected.text()
        joined = ". As it is, " if isinstance(self.expected, StartUnknown) else ", or "
        return f"{self.elsewhere.text()}{joined}{expected[0].lower()}{expected[1:]}"


@dataclass(frozen=True)
class StartsAt(Reason):
    """`at`: UTC; `in_s`: from now; `cost`: expected, None if unknown."""

    code = "starts_at"
    at: datetime
    in_s: FiniteFloat
    machines: str
    cost: str | None

    def text(self) -> str:
        when = f"{self.at:%H:%M} UTC" if self.in_s < DAY_S else f"{self.at:%Y-%m-%d %H:%M} UTC"
        return f"About {when} on {self.machines}{f', for about {dollars(self.cost)}' if self.cost else ''}."


@dataclass(frozen=True)
class StartsNow(Reason):
    code = "starts_now"
    machines: str
    cost: str | None

    def text(self) -> str:
        return f"Now on {self.machines}{f', for about {dollars(self.cost)}' if self.cost else ''}."


@dataclass(frozen=True)
class StartUnknown(Reason):
    """`held_up`: no budget or offer of today lets it start, however long it waits."""

    code = "start_unknown"
    held_up: bool

    def text(self) -> str:
        if self.held_up:
            return "No running job's end lets it start: it waits for something else to change."
        return "Its start can't be predicted: no earlier run says how long the jobs ahead of it take."


@dataclass(frozen=True)
class StartsElsewhere(Reason):
    """`more`: dollars beyond what it is expected to cost, with a minus if it is less; of an hour if `hourly`. `fields`:
    of the spec, that would have to be submitted so."""

    code = "starts_elsewhere"
    machines: str
    more: str
    hourly: bool
    fields: tuple[str, ...]

    def text(self) -> str:
        less = self.more.startswith("-")
        amount = f"{dollars(self.more.removeprefix('-'))}{' an hour' if self.hourly else ''}"
        amount += " less" if less else " more"
        return f"Starts now on {self.machines} for {amount} if submitted with {' '.join(self.fields)}"


@dataclass(frozen=True)
class WhatIfMoves(Reason):
    """Of the team's jobs: how many start earlier, later, where none did, and no more; how many running ones pause."""

    code = "what_if_moves"
    earlier: int
    later: int
    newly: int
    no_more: int
    paused: int

    def text(self) -> str:
        parts = [
            (self.earlier, "would start earlier"),
            (self.later, "would start later"),
            (self.newly, "would start at all"),
            (self.no_more, "would no longer have an expected start"),
        ]
        said = [f"{counted(count, 'job')} {what}" for count, what in parts if count]
        if self.paused:
            said.append(f"{counted(self.paused, 'running job')} would save a checkpoint and pause")
        return f"{'; '.join(said)}." if said else "No job of your team would start at another time."
