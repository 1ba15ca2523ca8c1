# SPDX-License-Identifier: Apache-2.0
"""Why ranks restart, why an attempt ends, and why a job ends because of it."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_core.wording.reason import NestedReason, Reason
from shoestring_core.wording.units import Span, batches_of_steps, counted

# Machines


@dataclass(frozen=True)
class GangComplete(Reason):
    code = "gang_complete"

    def text(self) -> str:
        return "All machines of the gang are available."


@dataclass(frozen=True)
class FewerMachines(Reason):
    code = "fewer_machines"
    available: int
    size: int

    def text(self) -> str:
        return (
            f"{self.available} of {counted(self.size, 'machine')} {'is' if self.available == 1 else 'are'} available."
        )


@dataclass(frozen=True)
class MachinePreempted(Reason):
    code = "machine_preempted"
    slot: int

    def text(self) -> str:
        return f"The machine in slot {self.slot} was preempted."


@dataclass(frozen=True)
class MachineLost(Reason):
    """`cause`: as the provider reports it, such as exited or crashed; None if it reports none."""

    code = "machine_lost"
    slot: int
    cause: str | None

    def text(self) -> str:
        return f"The machine in slot {self.slot} was lost{f' ({self.cause})' if self.cause else ''}."


@dataclass(frozen=True)
class MachineNeverRegistered(Reason):
    code = "machine_never_registered"
    slot: int

    def text(self) -> str:
        return (
            f"The machine in slot {self.slot} shut itself down before its agent registered. The events of its boot say "
            "what failed; if there are none, it can't reach the service: check SHOESTRING_AGENT_URL and its network."
        )


@dataclass(frozen=True)
class MachineNotReady(Reason):
    code = "machine_not_ready"
    slot: int

    def text(self) -> str:
        return f"The machine in slot {self.slot} did not get ready in time."


@dataclass(frozen=True)
class TooFewMachines(Reason):
    code = "too_few_machines"

    def text(self) -> str:
        return "The provider did not have enough machines for the gang."


@dataclass(frozen=True)
class QuotaTooLow(Reason):
    code = "quota_too_low"

    def text(self) -> str:
        return "The account's quota does not cover all machines of the gang."


@dataclass(frozen=True)
class SpotPriceTooHigh(Reason):
    code = "spot_price_too_high"

    def text(self) -> str:
        return (
            "Spot machines now cost more than on-demand ones, which is the maximum price. They are tried again later; "
            "with resources.spot: prefer the job uses on-demand machines meanwhile."
        )


@dataclass(frozen=True)
class PreemptionNoticed(Reason):
    code = "preemption_noticed"

    def text(self) -> str:
        return "A machine has a preemption notice."


@dataclass(frozen=True)
class StoppedWithoutOrder(Reason):
    code = "stopped_without_order"

    def text(self) -> str:
        return "The machines stopped training without an order to."


@dataclass(frozen=True)
class AttemptEnded(Reason):
    code = "attempt_ended"

    def text(self) -> str:
        return "Its attempt ended."


# Ranks


@dataclass(frozen=True)
class RankKilled(Reason):
    code = "rank_killed"
    rank: int

    def text(self) -> str:
        return f"Rank {self.rank} was killed by a signal."


@dataclass(frozen=True)
class RankFailed(Reason):
    """`error`: the first line of its message."""

    code = "rank_failed"
    rank: int
    error: str

    def text(self) -> str:
        return f"Rank {self.rank} failed: {self.error}"


@dataclass(frozen=True)
class HardwareFailed(Reason):
    """`error`: the first line of the message."""

    code = "hardware_failed"
    rank: int
    slot: int
    error: str

    def text(self) -> str:
        return (
            f"The GPU of rank {self.rank}, on the machine in slot {self.slot}, is broken: {self.error}. "
            "The job continues on another machine."
        )


@dataclass(frozen=True)
class RanksLeftBehind(Reason):
    code = "ranks_left_behind"

    def text(self) -> str:
        return "Some ranks exited and the others did not."


@dataclass(frozen=True)
class NoFinalCheckpoint(Reason):
    code = "no_final_checkpoint"

    def text(self) -> str:
        return "The ranks finished without a final checkpoint."


@dataclass(frozen=True)
class RolledBack(Reason):
    """After NaN or Inf: the steps from `first` to `last` are skipped from now on."""

    code = "rolled_back"
    error: str
    first: int
    last: int

    def text(self) -> str:
        return f"{self.error}; rolling back and skipping {batches_of_steps([(self.first, self.last)])}."


# The end of the job


@dataclass(frozen=True)
class RetryNotAllowed(Reason):
    """`attempt_reason`: why the attempt ended; `condition`: what retry.on lacks."""

    code = "retry_not_allowed"
    attempt_reason: str
    condition: str

    def text(self) -> str:
        return f"The attempt ended ({self.attempt_reason}), and retry.on does not include {self.condition}."


@dataclass(frozen=True)
class RetriesExhausted(Reason):
    code = "retries_exhausted"
    interruptions: int
    retry_max: int

    def text(self) -> str:
        return f"The job was interrupted {counted(self.interruptions, 'time')}; retry.max is {self.retry_max}."


@dataclass(frozen=True)
class NeverTrained(Reason):
    """`last`: why the last of them ended."""

    code = "never_trained"
    attempts: int
    last: NestedReason

    def text(self) -> str:
        count = f"{counted(self.attempts, 'attempt')} in a row launched machines that never trained a step."
        return f"{count} The last: {self.last.text()}"


@dataclass(frozen=True)
class RanksKeptFailing(Reason):
    """`error`: the last one; empty if the rank was killed."""

    code = "ranks_kept_failing"
    failures: int
    error: str

    def text(self) -> str:
        return (
            f"Ranks failed {counted(self.failures, 'time')} without a new checkpoint in between; "
            f"the last error: {self.error or 'killed by a signal'}"
        )


@dataclass(frozen=True)
class RepeatedlyNoFinalCheckpoint(Reason):
    code = "repeatedly_no_final_checkpoint"

    def text(self) -> str:
        return "The ranks finished repeatedly without a final checkpoint."


@dataclass(frozen=True)
class TrainingFailed(Reason):
    """An exception in training. `error` is the first line of its message, and the sentence: it is the user's code."""

    code = "training_failed"
    rank: int
    kind: str
    error: str

    def text(self) -> str:
        return self.error or f"Rank {self.rank} failed ({self.kind})."


@dataclass(frozen=True)
class NanPersisted(Reason):
    """NaN or Inf again after all recoveries; `skipped`: the spans of steps that they skipped."""

    code = "nan_persisted"
    error: str
    skipped: tuple[Span, ...]

    def text(self) -> str:
        if not self.skipped:
            return self.error
        return f"{self.error}; rolling back and skipping {batches_of_steps(self.skipped)} did not help"
