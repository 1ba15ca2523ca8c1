# SPDX-License-Identifier: Apache-2.0
"""Who trains in the next generation of a gang that may lose machines (`resources.min`), and when newcomers are let in.

A generation never changes: machines that are lost leave by the next one, machines that were rented for them come by
the next but one, after the ranks that run have left a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shoestring_core import wire
from shoestring_core.decide.timeouts import Terms
from shoestring_core.states import MachineState


@dataclass(frozen=True)
class Fate:
    """One machine of the attempt and its part in the generation. Times are µs UTC by the server's clock.

    part      it is a member of the current generation, or there is none yet
    first     it has node rank 0 there: it writes and uploads the checkpoints
    trained   it was a member of the last generation that formed: its ranks may run
    """

    slot: int
    state: MachineState
    end_cause: str | None = None
    notice_at: int | None = None
    last_report_at: int | None = None
    ready_at: int | None = None
    exited_at: int | None = None
    exits: tuple[wire.RankExit, ...] = ()
    redeemed_at: int | None = None
    ended_at: int | None = None
    part: bool = True
    first: bool = False
    trained: bool = False

    @property
    def fit(self) -> bool:
        """It can train, as far as anybody knows."""
        alive = self.state in (MachineState.CALLING, MachineState.UP)
        return alive and self.redeemed_at is not None and self.notice_at is None


def muster(fates: Iterable[Fate], least: int, expelled: Iterable[int] = ()) -> tuple[int, ...] | None:
    """The slots of the next generation; (): too few machines are left; None: too early to say.

    Never may two generations step. Whoever joins has ended all older ranks, and ranks without their peers can't step;
    so it is enough that one member of the generation that ran joins, or that all of them are gone.

    expelled  slots whose machines must not join, fit or not
    """
    everybody = list(fates)
    joining = [fate for fate in everybody if fate.fit and fate.slot not in set(expelled)]
    if len(joining) < least:
        return ()
    ran = [fate for fate in everybody if fate.trained and fate.state is not MachineState.GONE]
    if ran and not any(fate.trained for fate in joining):
        return None
    return tuple(sorted(fate.slot for fate in joining))


def newcomers_wait(fates: Iterable[Fate], now: int, terms: Terms) -> bool:
    """Whether the ranks that run should leave a checkpoint and make room for machines that have come.

    One restart for all that are on their way, unless that takes long.
    """
    others = [fate for fate in fates if not fate.part]
    here = [fate for fate in others if fate.fit and (fate.last_report_at or 0) >= now - terms.blame]
    coming = any(fate.redeemed_at is None and fate.state in STARTING for fate in others)
    since = min((fate.redeemed_at or now for fate in here), default=now)
    return bool(here) and (not coming or now >= since + terms.blame)


STARTING = (MachineState.PLANNED, MachineState.CALLING, MachineState.UP)
