# SPDX-License-Identifier: Apache-2.0
"""What follows from the exit of a rank or the loss of a machine: restart, end the attempt, or end the job."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_core import wire
from shoestring_core.decide import nan_recovery
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.rendezvous import MachineStatus, select_members
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.states import EndReason, GenerationState, MachineState
from shoestring_core.wording import Reason, attempts
from shoestring_core.wording.machines import (
    BootFailed,
    EndedByProvider,
    LaunchRefused,
    MachineSilent,
    ServiceUnreachable,
)

MAX_RESTARTS_WITHOUT_CHECKPOINT = 3
"""How often the same machines restart without a new checkpoint in between."""

CHECKPOINT_GRACE = 2 * S
"""How long the survivors of a machine loss wait for rank 0 to report that its last checkpoint is uploaded."""

USER_ERRORS = {reason.value: reason for reason in EndReason if reason.rank_error}
"""What a rank's error ends the job with: the same ranks would fail again."""


@dataclass(frozen=True)
class GangStatus:
    """The machines of the open attempt, and their current generation, if there is one.

    machines   one for each slot; of an elastic gang also those of the generation that failed
    restarts   earlier generations of this attempt that started from the job's current checkpoint
    min_nodes  the gang continues with this many machines; None or `size`: it can't lose any
    skips      spans of steps that the job skips because of NaN
    refusals   what the provider refused to launch, with its messages, oldest first
    """

    size: int
    machines: tuple[MachineStatus, ...]
    opened_at: int
    generation: int | None = None
    generation_state: GenerationState | None = None
    generation_opened_at: int = 0
    restarts: int = 0
    min_nodes: int | None = None
    skips: tuple[nan_recovery.Span, ...] = ()
    refusals: tuple[tuple[RefusalKind, str], ...] = ()

    @property
    def elastic(self) -> bool:
        return self.min_nodes is not None and self.min_nodes < self.size

    @property
    def members(self) -> tuple[MachineStatus, ...]:
        return tuple(machine for machine in self.machines if machine.is_member)


@dataclass(frozen=True)
class NoAction:
    """Nothing to do, or nothing yet."""


@dataclass(frozen=True)
class Restart:
    """Open the next generation on the same machines; of an elastic gang, on all that can train.

    excluded  slots whose machines are terminated because they did not get ready
    skip      steps to skip from now on; the generation starts from a checkpoint before them
    """

    reason: Reason
    excluded: tuple[int, ...] = ()
    skip: nan_recovery.Span | None = None


@dataclass(frozen=True)
class EndAttempt:
    """Give the machines back and queue the job again.

    reason  one of those in `retries.RULES`
    """

    reason: str
    detail: Reason


@dataclass(frozen=True)
class EndJob:
    reason: EndReason
    detail: Reason


AttemptAction = NoAction | Restart | EndAttempt | EndJob


def decide_attempt(gang: GangStatus, now: int, timeouts: Timeouts) -> AttemptAction:
    """What to do about a job whose attempt is open and wanted.

    A gang of fixed size can't lose a machine: the attempt ends. An elastic one (`resources.min`) continues with the
    machines that are left. A rank that was killed by a signal, or that only lost its peers, restarts with them. NaN is
    answered by rolling back before it, a few times. Any other error counts as the user's once every machine has
    reported for `attribution_window` since, because the loss of a machine makes its peers fail before it is noticed.
    """
    for machine in gang.members:
        # One that is left to its provider does nothing more, and its peers have nothing to wait for.
        over = machine.is_left and now >= (machine.exited_at or 0) + timeouts.forming
        if over or machine.state in (MachineState.TERMINATING, MachineState.TERMINATED):
            return _after_machine_loss(gang, machine, now, timeouts)
    if gang.generation is None:
        return _while_launching(gang, now, timeouts)
    if gang.generation_state is GenerationState.FORMING:
        late = tuple(machine.slot for machine in gang.members if machine.ready_at is None)
        if late and now >= gang.generation_opened_at + timeouts.forming:
            return _continue_or_end(gang, EndAttempt("not_ready", attempts.MachineNotReady(late[0])), late)
        return NoAction()
    return _after_rank_exits(gang, now, timeouts)


def _after_machine_loss(gang: GangStatus, lost: MachineStatus, now: int, timeouts: Timeouts) -> AttemptAction:
    if lost.notice_at is not None or lost.end_cause == "preempted":
        end = EndAttempt("preempted", attempts.MachinePreempted(lost.slot))
    elif refused := RefusalKind.of_end(lost.end_cause):
        if refused.end_reason is not None:
            return EndJob(refused.end_reason, EndedByProvider(refused))
        end = EndAttempt(refused, EndedByProvider(refused))
    elif lost.boot_failure is not None:
        detail = BootFailed(lost.slot, *lost.boot_failure)
        if detail.kind == "image":
            return EndJob(EndReason.IMAGE, detail)
        if detail.kind == "network":
            return EndJob(EndReason.NETWORK, detail)
        end = EndAttempt(detail.kind, detail)
    elif lost.end_cause == "exited" and lost.is_mute and timeouts.hello is not None:
        return EndJob(EndReason.NETWORK, ServiceUnreachable(lost.slot))
    elif lost.end_cause == "exited" and lost.registered_at is None:
        end = EndAttempt("machine_lost", attempts.MachineNeverRegistered(lost.slot))
    else:
        end = EndAttempt("machine_lost", attempts.MachineLost(lost.slot, lost.end_cause))
    uploading = any(machine.is_rank0 and machine.can_train and machine.exited_at is None for machine in gang.members)
    formed = gang.generation_state is GenerationState.FORMED
    if gang.elastic and formed and uploading and now < (lost.ended_at or 0) + CHECKPOINT_GRACE:
        return NoAction()
    return _continue_or_end(gang, end)


def _continue_or_end(gang: GangStatus, end: EndAttempt, excluded: tuple[int, ...] = ()) -> AttemptAction:
    """Restart an elastic gang on the machines that are left, if these are enough; otherwise `end`."""
    if not gang.elastic or gang.generation is None:
        return end
    slots = select_members(gang.machines, gang.min_nodes or gang.size, excluded)
    if slots is None:
        return NoAction()
    return Restart(end.detail, excluded) if slots else end


def _while_launching(gang: GangStatus, now: int, timeouts: Timeouts) -> AttemptAction:
    for kind, message in gang.refusals:
        if kind.end_reason is not None:
            return EndJob(kind.end_reason, LaunchRefused(kind, message))
        if kind is RefusalKind.REGION:  # machines of an attempt are in one region
            return EndAttempt("region", LaunchRefused(kind, message))
    for machine in gang.machines:
        if timeouts.hello is not None and machine.is_mute and now >= (machine.launched_at or now) + timeouts.hello:
            return EndAttempt("boot", MachineSilent(machine.slot, timeouts.hello // S))
    if now < gang.opened_at + timeouts.launch_window:
        return NoAction()
    running = sum(machine.state is MachineState.RUNNING for machine in gang.machines)
    if gang.elastic and (slots := select_members(gang.machines, gang.min_nodes or gang.size)):
        return Restart(attempts.FewerMachines(len(slots), gang.size))
    if running < gang.size:
        if len(gang.machines) < gang.size and gang.refusals[-1:] and gang.refusals[-1][0] is RefusalKind.ROLE:
            return EndJob(EndReason.ACCOUNT, LaunchRefused(*gang.refusals[-1]))
        refused_for = {kind for kind, _ in gang.refusals}
        if RefusalKind.QUOTA in refused_for:
            return EndAttempt("quota", attempts.QuotaTooLow())
        if RefusalKind.PRICE in refused_for:
            return EndAttempt("price", attempts.SpotPriceTooHigh())
        return EndAttempt("capacity", attempts.TooFewMachines())
    return NoAction()


def _after_rank_exits(gang: GangStatus, now: int, timeouts: Timeouts) -> AttemptAction:
    exited = [machine for machine in gang.members if machine.exited_at is not None]
    if not exited:
        return NoAction()
    all_exited = len(exited) == len(gang.members)
    since = min(machine.exited_at for machine in exited if machine.exited_at is not None)
    exits = sorted((end for machine in exited for end in machine.exits), key=lambda end: (end.at, end.rank))
    failed = [end for end in exits if end.outcome in ("error", "signal")]
    if any(machine.notice_at is not None for machine in gang.members):
        end = EndAttempt("preempted", attempts.PreemptionNoticed())
        return _continue_or_end(gang, end) if all_exited else NoAction()
    if not failed:
        return _after_clean_exits(exits, gang, all_exited, now >= since + timeouts.forming)

    for machine in exited:
        if broken := next((end for end in machine.exits if end.kind == "hardware"), None):
            end = EndAttempt("hardware", attempts.HardwareFailed(broken.rank, machine.slot, broken.summary))
            return _continue_or_end(gang, end, (machine.slot,))
    nan = next((end for end in failed if end.kind == "nan" and end.since is not None), None)
    if nan is not None:
        return _recover_from_nan(nan, gang)
    killed = next((end for end in failed if end.outcome == "signal"), None)
    user_error = next((end for end in failed if end.kind in USER_ERRORS), None)
    if killed is None and user_error is not None:
        # The user's error, unless a machine was lost, which takes a while to be noticed.
        all_reported = all((machine.last_report_at or 0) >= since for machine in gang.members)
        return _end_with(user_error) if all_reported and now >= since + timeouts.attribution_window else NoAction()
    if killed is None and not all_exited and now < since + timeouts.attribution_window:
        return NoAction()  # the other ranks may still report the cause
    if gang.restarts < MAX_RESTARTS_WITHOUT_CHECKPOINT:
        first = killed or failed[0]
        if first.outcome == "signal":
            return Restart(attempts.RankKilled(first.rank))
        return Restart(attempts.RankFailed(first.rank, first.summary[:200]))
    if user_error is not None:
        return _end_with(user_error)
    return EndJob(EndReason.INFRASTRUCTURE, attempts.RanksKeptFailing(gang.restarts + 1, failed[0].summary))


def _after_clean_exits(
    exits: list[wire.RankExit], gang: GangStatus, all_exited: bool, waited_long: bool
) -> AttemptAction:
    """Ranks exited without an error, though the job was not stopped."""
    if not all_exited:
        return Restart(attempts.RanksLeftBehind()) if waited_long else NoAction()
    if any(end.outcome == "drained" for end in exits):
        return _continue_or_end(gang, EndAttempt("preempted", attempts.StoppedWithoutOrder()))
    if not waited_long:
        return NoAction()  # the final checkpoint is still being uploaded
    if gang.restarts < MAX_RESTARTS_WITHOUT_CHECKPOINT:
        return Restart(attempts.NoFinalCheckpoint())
    return EndJob(EndReason.INFRASTRUCTURE, attempts.RepeatedlyNoFinalCheckpoint())


def _recover_from_nan(end: wire.RankExit, gang: GangStatus) -> AttemptAction:
    """NaN is the same on all ranks, and the loss of a peer doesn't cause it: no need to wait for other reports."""
    span = nan_recovery.next_skip(end.since or 1, gang.skips)
    if span is None:
        return EndJob(EndReason.NAN, attempts.NanPersisted(end.summary, gang.skips))
    return Restart(attempts.RolledBack(end.summary, *span), skip=span)


def _end_with(error: wire.RankExit) -> EndJob:
    kind = error.kind or "user_code"
    return EndJob(USER_ERRORS[kind], attempts.TrainingFailed(error.rank, kind, error.summary))
