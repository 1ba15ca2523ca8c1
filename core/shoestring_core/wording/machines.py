# SPDX-License-Identifier: Apache-2.0
"""What happened to machines, and why they are terminated."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_core.wording.reason import Reason
from shoestring_core.wording.units import clock_time


@dataclass(frozen=True)
class LaunchRefused(Reason):
    """`message` is the provider's own."""

    code = "launch_refused"
    refusal: str
    message: str

    def text(self) -> str:
        return f"The provider refused to launch a machine ({self.refusal}): {self.message}"


@dataclass(frozen=True)
class LaunchUnanswered(Reason):
    """`problem`: that somebody has to solve before the provider answers, as a sentence."""

    code = "launch_unanswered"
    problem: str

    def text(self) -> str:
        return f"A machine could not be launched yet; the launch is retried. {self.problem}"


@dataclass(frozen=True)
class MachinePlanned(Reason):
    """`place`: its zone, or its region where that has none. `price`: dollars per hour."""

    code = "machine_planned"
    slot: int
    type: str
    market: str
    place: str
    price: str

    def text(self) -> str:
        market = "spot" if self.market == "spot" else "on demand"
        return f"Slot {self.slot}: {self.type}, {market}, in {self.place} at ${self.price} an hour."


@dataclass(frozen=True)
class LaunchNotNeeded(Reason):
    code = "launch_not_needed"

    def text(self) -> str:
        return "It was no longer needed when it was to be launched."


@dataclass(frozen=True)
class TerminationRequested(Reason):
    code = "termination_requested"

    def text(self) -> str:
        return "Its termination was requested."


@dataclass(frozen=True)
class NotNeeded(Reason):
    code = "not_needed"

    def text(self) -> str:
        return "Its job no longer needs it."


@dataclass(frozen=True)
class FundingExpired(Reason):
    code = "funding_expired"

    def text(self) -> str:
        return "Its funding lease has expired."


@dataclass(frozen=True)
class LeaseExpired(Reason):
    code = "lease_expired"

    def text(self) -> str:
        return "It has not reported for too long."


@dataclass(frozen=True)
class Untracked(Reason):
    code = "untracked"

    def text(self) -> str:
        return "No job needs it."


@dataclass(frozen=True)
class NotReadyInTime(Reason):
    code = "not_ready_in_time"

    def text(self) -> str:
        return "It did not get ready in time."


@dataclass(frozen=True)
class NoLongerListed(Reason):
    code = "no_longer_listed"

    def text(self) -> str:
        return "The provider no longer lists it."


@dataclass(frozen=True)
class EndedByProvider(Reason):
    """`cause`: decide.reconcile.ProviderMachine.end_cause."""

    code = "ended_by_provider"
    cause: str

    def text(self) -> str:
        return _CAUSES.get(self.cause, f"{self.cause.capitalize()}.")


_CAUSES = {
    "preempted": "It was preempted.",
    "requested": "Shoestring terminated it.",
    "exited": "It exited normally.",
    "crashed": "It crashed.",
    "capacity": "The provider had no capacity for it after all.",
    "price": "Spot cost more than on demand after all.",
    "quota": "The account's quota did not allow it after all.",
    "account": "The account may not launch it: often a key that encrypts its disk can't be used.",
    "image": "Its image can't be used.",
}


@dataclass(frozen=True)
class BootFailed(Reason):
    """`kind`: image | network | hardware | boot; `phase` and `message` are the machine's own."""

    code = "boot_failed"
    slot: int
    kind: str
    phase: str
    message: str

    def text(self) -> str:
        advice = _BOOT_ADVICE.get(self.kind, "The job is retried on other machines a few times.")
        return f"The machine in slot {self.slot} failed in boot phase {self.phase}: {self.message}. {advice}"


_BOOT_ADVICE = {
    "image": "Other machines would fail in the same way: use an image with a driver and an environment (docs/aws.md).",
    "network": "Others would not reach it either: check that the machine's subnet has a route to the object store.",
    "hardware": "Its GPU can't be used; the job is retried on another machine.",
}


@dataclass(frozen=True)
class ServiceUnreachable(Reason):
    code = "service_unreachable"
    slot: int

    def text(self) -> str:
        return (
            f"The machine in slot {self.slot} booted, could not reach this service within a minute, and powered itself "
            "off. Others would not reach it either: check that SHOESTRING_AGENT_URL is reachable from the internet, "
            "that the machine's subnet has a route there, and that its security group lets it out."
        )


@dataclass(frozen=True)
class MachineSilent(Reason):
    code = "machine_silent"
    slot: int
    seconds: int

    def text(self) -> str:
        return (
            f"The machine in slot {self.slot} was launched {self.seconds} s ago and its user data has reported "
            "nothing. Check that the image runs cloud-init and has Python 3.9 or later as python3."
        )


@dataclass(frozen=True)
class PreemptionAnnounced(Reason):
    code = "preemption_announced"

    def text(self) -> str:
        return "The provider will terminate it."


@dataclass(frozen=True)
class LeftToProvider(Reason):
    """`until`: then it is ended after all (µs UTC)."""

    code = "left_to_provider"
    until: int

    def text(self) -> str:
        return f"Its work is saved. It stays until {clock_time(self.until)}: if its provider interrupts it, it is free."


@dataclass(frozen=True)
class RanksExited(Reason):
    """`outcomes`: of its ranks, such as finished, drained or error."""

    code = "ranks_exited"
    outcomes: tuple[str, ...]

    def text(self) -> str:
        return f"Its ranks exited: {', '.join(self.outcomes)}."


@dataclass(frozen=True)
class PreemptionNotSimulated(Reason):
    code = "preemption_not_simulated"
    provider: str

    def text(self) -> str:
        return f"Only machines of a simulated provider can be preempted here, not those of {self.provider}."


@dataclass(frozen=True)
class MachineNotRunning(Reason):
    code = "machine_not_running"
    state: str

    def text(self) -> str:
        return f"The machine is {self.state}; only a running machine can be preempted."


@dataclass(frozen=True)
class MachineHostRefused(Reason):
    code = "machine_host_refused"
    message: str

    def text(self) -> str:
        return f"The machine host refused: {self.message}"


@dataclass(frozen=True)
class SecretRefused(Reason):
    """`secret`: what was wrong: boot_token | second_session | session."""

    code = "secret_refused"
    secret: str

    def text(self) -> str:
        return f"Refused {_SECRETS.get(self.secret, self.secret)} for a machine."


_SECRETS = {
    "boot_token": "a wrong boot token",
    "second_session": "a second session secret",
    "session": "a wrong session",
}
