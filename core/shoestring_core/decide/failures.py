# SPDX-License-Identifier: Apache-2.0
"""Deaths have owners: what the end of a rank or the loss of a machine means for its job."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_core import wire
from shoestring_core.decide import nan_recovery
from shoestring_core.decide.membership import Fate, muster
from shoestring_core.decide.timeouts import S, Terms
from shoestring_core.states import EndReason, GenerationState, MachineState

RESTARTS = 3
"""How often the same machines start again without a new checkpoint in between."""

USER_KINDS = {
    "user_code": EndReason.USER_CODE,
    "out_of_memory": EndReason.OUT_OF_MEMORY,
    "nan": EndReason.NAN,
    "data": EndReason.DATA,
}


@dataclass(frozen=True)
class Gang:
    """The machines of the open attempt, and the generation they form, if one was opened.

    fates     one for each slot; in a gang that may lose machines also those of the generation that died
    least     so many machines are enough to go on; the size for a gang that can't lose any
    restarts  generations of this attempt that began at the job's present checkpoint before this one
    skips     spans of steps that the job passes over since its numbers broke there
    """

    size: int
    fates: tuple[Fate, ...]
    opened_at: int
    generation: int | None = None
    state: GenerationState | None = None
    generation_at: int = 0
    restarts: int = 0
    least: int | None = None
    skips: tuple[nan_recovery.Span, ...] = ()

    @property
    def elastic(self) -> bool:
        return self.least is not None and self.least < self.size

    @property
    def members(self) -> tuple[Fate, ...]:
        return tuple(fate for fate in self.fates if fate.part)


@dataclass(frozen=True)
class KeepGoing:
    """Nothing to do, or nothing yet."""


@dataclass(frozen=True)
class Restart:
    """The next generation, on the same machines; of a gang that may lose some, on all that can train.

    expelled  slots whose machines are ended because they did not answer
    skip      steps whose batches are passed over from now on; it starts from a checkpoint before them
    """

    reason: str
    expelled: tuple[int, ...] = ()
    skip: nan_recovery.Span | None = None


@dataclass(frozen=True)
class EndAttempt:
    """Give the machines back and queue the job again. `reason`: interruption | lost | no_answer | capacity."""

    reason: str
    text: str


@dataclass(frozen=True)
class EndJob:
    reason: EndReason
    text: str


Verdict = KeepGoing | Restart | EndAttempt | EndJob


def judge(gang: Gang, now: int, terms: Terms) -> Verdict:
    """What has to happen to a job whose attempt is open and wanted.

    A gang of fixed size can't lose a machine: the attempt ends. One that may (`resources.min`) goes on with those that
    are left. A rank that died by a signal, or that only lost its peers, starts again with them. Numbers that broke are
    answered by going back before them, a few times. An error of the user's
    is the user's once every machine has gone on reporting for a while, because a machine that is lost makes its peers
    fail first and is missed later.
    """
    for fate in gang.members:
        if fate.state in (MachineState.ENDING, MachineState.GONE):
            return _lost(gang, fate, now)
    if gang.generation is None:
        return _launching(gang, now, terms)
    if gang.state is GenerationState.FORMING:
        silent = tuple(fate.slot for fate in gang.members if fate.ready_at is None)
        if silent and now >= gang.generation_at + terms.forming:
            text = f"The machine in slot {silent[0]} did not get ready in time."
            return _go_on(gang, EndAttempt("no_answer", text), silent)
        return KeepGoing()
    return _exits(gang, now, terms)


def retry(reason: str, trained: int, bought_in_vain: int, on: tuple[str, ...], most: int) -> EndJob | None:
    """Whether a job whose attempt ended may queue again (None), or ends.

    trained         its attempts in which a step ran, this one included; the first is not a retry
    bought_in_vain  its latest attempts in a row that bought machines and never trained
    on, most        the spec's retry.on and retry.max
    """
    kind = "capacity" if reason == "capacity" else "interruption"
    if kind not in on:
        end = EndReason.NO_CAPACITY if kind == "capacity" else EndReason.INFRASTRUCTURE
        return EndJob(end, f"The attempt ended ({reason}), and retry.on does not name {kind}.")
    if trained > most:
        return EndJob(EndReason.INFRASTRUCTURE, f"It was interrupted {trained} times; retry.max is {most}.")
    if bought_in_vain >= IN_VAIN:
        return EndJob(EndReason.INFRASTRUCTURE, f"{IN_VAIN} attempts in a row bought machines that never trained.")
    return None


IN_VAIN = 8
"""How many attempts in a row may buy machines that never train: a bound on money spent for nothing."""


def delay(failures: int, terms: Terms, first: int = S // 2) -> int:
    """µs to wait before the next try, after so many in a row: doubling from `first` to a launch window."""
    return min(first * 2 ** min(failures - 1, 20), terms.launch_window) if failures else 0


LAST_WORD = 2 * S
"""How long the survivors of a loss wait for the first of them to say that its last checkpoint is delivered."""


def _lost(gang: Gang, fate: Fate, now: int) -> Verdict:
    if fate.notice_at is not None or fate.end_cause == "reclaimed":
        end = EndAttempt("interruption", f"The provider took the machine in slot {fate.slot} back.")
    else:
        cause = f" ({fate.end_cause})" if fate.end_cause else ""
        end = EndAttempt("lost", f"The machine in slot {fate.slot} was lost{cause}.")
    delivering = any(one.first and one.fit and one.exited_at is None for one in gang.members)
    if gang.elastic and gang.state is GenerationState.FORMED and delivering and now < (fate.ended_at or 0) + LAST_WORD:
        return KeepGoing()
    return _go_on(gang, end)


def _go_on(gang: Gang, end: EndAttempt, expelled: tuple[int, ...] = ()) -> Verdict:
    """The next generation of those that are left, where that is allowed and they are enough; else the end."""
    if not gang.elastic or gang.generation is None:
        return end
    slots = muster(gang.fates, gang.least or gang.size, expelled)
    if slots is None:
        return KeepGoing()
    return Restart(end.text, expelled) if slots else end


def _launching(gang: Gang, now: int, terms: Terms) -> Verdict:
    if now < gang.opened_at + terms.launch_window:
        return KeepGoing()
    rented = sum(fate.state is MachineState.UP for fate in gang.fates)
    if gang.elastic and (slots := muster(gang.fates, gang.least or gang.size)):
        return Restart(f"{len(slots)} of {gang.size} machines have come")
    if rented < gang.size:
        return EndAttempt("capacity", "The provider had no machines for the whole gang.")
    return KeepGoing()


def _exits(gang: Gang, now: int, terms: Terms) -> Verdict:
    over = [fate for fate in gang.members if fate.exited_at is not None]
    if not over:
        return KeepGoing()
    everybody = len(over) == len(gang.members)
    since = min(fate.exited_at for fate in over if fate.exited_at is not None)
    exits = sorted((end for fate in over for end in fate.exits), key=lambda end: (end.at, end.rank))
    failed = [end for end in exits if end.outcome in ("error", "signal")]
    if any(fate.notice_at is not None for fate in gang.members):
        end = EndAttempt("interruption", "The provider takes a machine back.")
        return _go_on(gang, end) if everybody else KeepGoing()
    if not failed:
        return _left(exits, gang, everybody, now >= since + terms.forming)

    broken = next((end for end in failed if end.kind == "nan" and end.since is not None), None)
    if broken is not None:
        return _recover(broken, gang)
    killed = next((end for end in failed if end.outcome == "signal"), None)
    faulty = next((end for end in failed if end.kind in USER_KINDS), None)
    if killed is None and faulty is not None:
        # An error of the user's, unless a machine was lost: that takes a while to be seen.
        heard = all((fate.last_report_at or 0) >= since for fate in gang.members)
        return _users(faulty) if heard and now >= since + terms.blame else KeepGoing()
    if killed is None and not everybody and now < since + terms.blame:
        return KeepGoing()  # whose fault it is, the others may still say
    if gang.restarts < RESTARTS:
        first = killed or failed[0]
        how = "died by a signal" if first.outcome == "signal" else f"failed: {first.message[:200]}"
        return Restart(f"rank {first.rank} {how}")
    if faulty is not None:
        return _users(faulty)
    last = failed[0].message or "killed by a signal"
    text = f"Ranks died {gang.restarts + 1} times without a new checkpoint in between; the last: {last}"
    return EndJob(EndReason.INFRASTRUCTURE, text)


def _left(exits: list[wire.RankExit], gang: Gang, everybody: bool, patience_over: bool) -> Verdict:
    """Ranks that ended by themselves, though nobody asked for it."""
    if not everybody:
        return Restart("some ranks left and the others did not follow") if patience_over else KeepGoing()
    if any(end.outcome == "drained" for end in exits):
        return _go_on(gang, EndAttempt("interruption", "The machines stopped training by themselves."))
    if not patience_over:
        return KeepGoing()  # the final checkpoint is still on its way
    if gang.restarts < RESTARTS:
        return Restart("the ranks finished without a final checkpoint")
    return EndJob(EndReason.INFRASTRUCTURE, "The ranks finish, but no final checkpoint ever arrives.")


def _recover(end: wire.RankExit, gang: Gang) -> Verdict:
    """Numbers that broke are the same on all ranks, and no peer's loss makes them: no need to hear the others."""
    said = end.message.partition("\n\n")[0][:500]
    span = nan_recovery.pass_over(end.since or 1, gang.skips)
    if span is None:
        return EndJob(EndReason.NAN, nan_recovery.given_up(said, gang.skips))
    return Restart(f"{said}; it goes back and passes over {nan_recovery.in_words([span])}", skip=span)


def _users(end: wire.RankExit) -> EndJob:
    return EndJob(USER_KINDS[end.kind or "user_code"], end.message or f"Rank {end.rank} failed ({end.kind}).")
