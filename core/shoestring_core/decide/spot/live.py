# SPDX-License-Identifier: Apache-2.0
"""The decision about a job that lives: the simulator's, for one run, with what it may still spend.

What is left of its money must pay for on-demand machines to the end. As long as it does, what a spot machine could cost
that is lost at once is taken from the rest alone.
"""

from __future__ import annotations

import numpy as np

from shoestring_core.decide.deadlines import Because, DeadlineCase, DeadlineDecision, Market, Seen, ZoneSeen
from shoestring_core.decide.spot.availability import AvailabilityHistory
from shoestring_core.decide.spot.deadline_job import DeadlineJob, RunStates
from shoestring_core.decide.spot.policies import Adaptive, Policy, choose_modes

HOUR = 3_600_000_000
"""µs"""

MARKETS: tuple[Market, ...] = ("wait", "spot", "on_demand")
"""In the order of `Mode`."""

NO_ZONE = ""
"""Stands for the zones while there are none."""

SHORTEST = 1_000_000
"""µs of work that a job has left at least: it ends by itself."""


def decide_deadline(case: DeadlineCase, policy: Policy | None = None) -> DeadlineDecision:
    """Where the job trains in this interval.

    policy  one that keeps what it computed for this job's earlier decisions; it decides like a new one
    """
    work_left = max(case.work_left, SHORTEST)
    left = case.plan.deadline - case.now
    if left < work_left + case.changeover and case.market != "wait":  # it could only lose by leaving its machines
        is_late = left < work_left + case.changeover_left
        return DeadlineDecision(case.market, case.zone, "late" if is_late else "deadline")
    if left < work_left + case.changeover:
        return DeadlineDecision("on_demand", "", "late")
    job = DeadlineJob(
        work=case.plan.work / HOUR,
        deadline=(case.plan.deadline - case.plan.begun_at) / HOUR,
        changeover=case.changeover / HOUR,
        price_ratio=case.price_ratio,
        interval=case.interval / HOUR,
    )
    names = [zone.name for zone in case.seen.zones]
    states = RunStates(
        mode=np.array([MARKETS.index(case.market)]),
        zone=np.array([names.index(case.zone) if case.market == "spot" else 0]),
        work_left=np.array([work_left / HOUR]),
        changeover_left=np.array([case.changeover_left / HOUR]),
    )
    history = history_of(case.seen, job.interval)
    wanted, kept = choose_modes(job, policy or Adaptive(), states, history, case.time_left / HOUR)
    market = MARKETS[int(kept[0])]
    because: Because = "policy" if wanted[0] == kept[0] else "deadline"
    if market == "spot" and not _affords_loss(case, work_left):
        return DeadlineDecision("on_demand", "", "money")
    zone = names[int(history.longest_lived_zones()[0])] if market == "spot" else ""
    return DeadlineDecision(market, case.zone if case.market == market == "spot" else zone, because)


def observe(seen: Seen, available: dict[str, bool], interval: int) -> Seen:
    """What has been seen once the zones of this interval are: those that are named, and those that were before."""
    known = {zone.name: zone for zone in seen.zones}
    names = sorted((known.keys() | available.keys()) - {NO_ZONE}) or [NO_ZONE]
    whole = Seen(
        tuple(known.get(name, ZoneSeen(name, False)) for name in names),
        seen.any_up_hours, seen.several_up_hours, seen.outage_hours, seen.recoveries,
    )  # fmt: skip
    history = history_of(whole, interval / HOUR, observed=bool(seen.zones))
    history.observe(np.array([[available.get(name, False) for name in names]], bool))
    return seen_by(history, names)


def history_of(seen: Seen, interval: float, *, observed: bool = True) -> AvailabilityHistory:
    """`interval` in hours."""
    history = AvailabilityHistory(1, len(seen.zones), interval)
    history.restore(
        available=np.array([[zone.available for zone in seen.zones]], bool),
        up_hours=np.array([[zone.up_hours for zone in seen.zones]], float),
        losses=np.array([[zone.losses for zone in seen.zones]], float),
        totals=(seen.any_up_hours, seen.several_up_hours, seen.outage_hours, seen.recoveries),
        observed=observed,
    )
    return history


def seen_by(history: AvailabilityHistory, names: list[str]) -> Seen:
    (any_up, several_up, outage, recoveries), up_hours, losses = history.totals()
    zones = zip(names, history.available[0], up_hours[0], losses[0], strict=True)
    return Seen(
        tuple(ZoneSeen(name, bool(up), float(hours), int(lost)) for name, up, hours, lost in zones),
        float(any_up[0]), float(several_up[0]), float(outage[0]), int(recoveries[0]),
    )  # fmt: skip


def _affords_loss(case: DeadlineCase, work_left: int) -> bool:
    """Whether on-demand machines can still be paid for if a spot machine is lost in this interval; or can't anyway."""
    if case.money_left is None:
        return True
    need = case.on_demand_rate * (work_left + case.changeover) // HOUR
    starting = case.changeover if case.market != "spot" else 0
    lost = case.spot_rate * (starting + case.interval) // HOUR
    return not need <= case.money_left < need + lost
