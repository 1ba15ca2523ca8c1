# SPDX-License-Identifier: Apache-2.0
"""Which machines form the next generation of an elastic gang (`resources.min`), and when waiting machines are admitted.

The membership of a generation never changes: lost machines are left out of the next one; their replacements join the
one after that, once the running ranks have written a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shoestring_core import wire
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.states import MachineState


@dataclass(frozen=True)
class MachineStatus:
    """One machine of the attempt and its role in the generation. Times are µs UTC by the server's clock.

    is_member     it is a member of the current generation, or there is no generation yet
    is_rank0      its node rank is 0: it writes and uploads the checkpoints
    was_member    it was a member of the last generation that formed, so its ranks may still run
    is_left       its work is over, and it lives on only because its provider makes it free by interrupting it
    hello_at      when its user data first reached the service
    boot_failure  kind, phase and message of what failed in its boot
    """

    slot: int
    state: MachineState
    end_cause: str | None = None
    notice_at: int | None = None
    is_left: bool = False
    last_report_at: int | None = None
    ready_at: int | None = None
    exited_at: int | None = None
    exits: tuple[wire.RankExit, ...] = ()
    registered_at: int | None = None
    ended_at: int | None = None
    launched_at: int | None = None
    hello_at: int | None = None
    boot_failure: tuple[str, str, str] | None = None
    is_member: bool = True
    is_rank0: bool = False
    was_member: bool = False

    @property
    def is_mute(self) -> bool:
        """Nothing on it has ever reached the service."""
        return self.hello_at is None and self.registered_at is None

    @property
    def can_train(self) -> bool:
        """It is alive and registered, and has no preemption notice, as far as we know."""
        alive = self.state in (MachineState.LAUNCHING, MachineState.RUNNING)
        return alive and self.registered_at is not None and self.notice_at is None


def select_members(
    machines: Iterable[MachineStatus], min_nodes: int, excluded: Iterable[int] = ()
) -> tuple[int, ...] | None:
    """The slots of the next generation; (): too few machines are left; None: too early to decide.

    Two generations must never step at the same time. A machine that joins has ended its older ranks, and ranks without
    their peers can't step; so it is enough that one member of the last generation joins, or that all of them
    are terminated.

    excluded  slots whose machines must not join, even if they can train
    """
    candidates, excluded_slots = list(machines), set(excluded)
    joining = [machine for machine in candidates if machine.can_train and machine.slot not in excluded_slots]
    if len(joining) < min_nodes:
        return ()
    may_run = [machine for machine in candidates if machine.was_member and machine.state is not MachineState.TERMINATED]
    if may_run and not any(machine.was_member for machine in joining):
        return None
    return tuple(sorted(machine.slot for machine in joining))


def should_admit_waiting(machines: Iterable[MachineStatus], now: int, timeouts: Timeouts) -> bool:
    """Whether the running ranks should checkpoint and stop, so that waiting machines join the next generation.

    Machines that are still starting are waited for, up to `join_window`, so that all join with one restart.
    """
    others = [machine for machine in machines if not machine.is_member]
    waiting = [
        machine
        for machine in others
        if machine.can_train and (machine.last_report_at or 0) >= now - timeouts.join_window
    ]
    starting = any(machine.registered_at is None and machine.state in STARTING for machine in others)
    since = min((machine.registered_at or now for machine in waiting), default=now)
    return bool(waiting) and (not starting or now >= since + timeouts.join_window)


STARTING = (MachineState.PLANNED, MachineState.LAUNCHING, MachineState.RUNNING)
