# SPDX-License-Identifier: Apache-2.0
"""What the timeline of a storm would have overspent under three rules of others, and under ours, as small models.

The demands are the storm's launches, granted or not, each for a time that its key draws; the limit is the
organization's as the storm moved it, at its highest so far: what was ever allowed. All rules stop machines that the
limit doesn't cover, and a stopped machine is charged until it has ended.

alert    spending is known 8 hours late (cost data are refreshed so often: docs.aws.amazon.com/cost-management)
kill     spending is known at once, and at the limit everything is stopped; nothing is held for what still runs
on_ack   money is held as here, but released when the provider has acknowledged the call that ends a machine
ended    the rule of this project, as small a model: it is held until the provider reports the end
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from shoestring_core import money
from shoestring_core.store.db import Store
from shoestring_core.store.tables import AccountRow, LimitChangeRow, MachineRow
from sqlalchemy import select

from tests.core.store.ledger_storm import BEGINNING, OFFERS, Scale

Rule = Literal["alert", "kill", "on_ack", "ended"]
RULES: tuple[Rule, ...] = get_args(Rule)
ALERT_DELAY = 8 * money.HOUR
MEAN_STEPS = 150
"""How long a demand is for."""


@dataclass(frozen=True)
class Demand:
    """A machine that is wanted at a time, for how long, and how long it takes to end, in steps; its cost of each step.

    most  what a step can cost
    """

    at: int
    cost: int
    most: int
    steps: int
    drain: int


@dataclass
class _Machine:
    demand: Demand
    left: int
    """Steps until it is stopped, or once it is, until it has ended."""
    stopped: bool = False


def figures(
    store: Store, journals: Iterable[Iterable[dict[str, Any]]], seed: int, scale: Scale, end: int
) -> dict[str, int]:
    """Micro-dollars: the limit in the end, and what was spent beyond it at the worst moment, here and by each rule.

    end  steps of the storm
    """
    limits, demands = limits_of(store, scale, end), demands_of(journals, seed, scale)
    by_rule = {rule: overspend(demands, limits, rule, ALERT_DELAY // scale.step) for rule in RULES}
    return {"limit": limits[-1], "ours": really_overspent(store, scale, limits), **by_rule}


def overspend(demands: Iterable[Demand], limits: Sequence[int], rule: Rule, alert_steps: int = 0) -> int:
    """The most micro-dollars spent beyond the limit at any time. limits: by step, never falling."""
    waiting = sorted(demands, key=lambda one: one.at, reverse=True)
    running: list[_Machine] = []
    history, spent, worst = [0], 0, 0
    for now, limit in enumerate(limits):
        known = history[max(0, now - alert_steps)] if rule == "alert" else spent
        going = [machine for machine in running if not machine.stopped]
        for machine in going:
            if machine.left <= 0 or known >= limit:
                _stop(machine)
        held = sum(_hold(machine, rule) for machine in running)
        for machine in going:
            if not machine.stopped and known + held > limit:
                held -= _hold(machine, rule)
                _stop(machine)
                held += _hold(machine, rule)
        while waiting and waiting[-1].at <= now:
            machine = _Machine(waiting[-1], waiting.pop().steps)
            if known < limit and known + held + _hold(machine, rule) <= limit:
                running.append(machine)
                held += _hold(machine, rule)
        for machine in running:
            spent += machine.demand.cost
            machine.left -= 1
        running = [machine for machine in running if not machine.stopped or machine.left > 0]
        history.append(spent)
        worst = max(worst, spent - limit)
    return worst


def _hold(machine: _Machine, rule: Rule) -> int:
    """For a machine that goes on: its next step and its end. A stopped one has its end held, where the rule does."""
    if rule in ("alert", "kill") or (machine.stopped and rule == "on_ack"):
        return 0
    return machine.demand.most * (machine.left if machine.stopped else 1 + machine.demand.drain)


def _stop(machine: _Machine) -> None:
    """The provider acknowledges; the machine is charged until it has ended."""
    machine.stopped, machine.left = True, machine.demand.drain


def demands_of(journals: Iterable[Iterable[dict[str, Any]]], seed: int, scale: Scale) -> list[Demand]:
    """Each launch that the storm tried, once."""
    first = {line["key"]: line for journal in journals for line in journal if line.get("kind") == "refill"}
    return [_demand(line, random.Random(f"{seed}/{key}"), scale) for key, line in first.items()]


def _demand(line: dict[str, Any], draw: random.Random, scale: Scale) -> Demand:
    offer = OFFERS[line["offer"]]
    at = (line["at"] - BEGINNING) // scale.step
    drain = draw.choice([1, 5, 15])
    cost, most = money.cost(offer.price, scale.step), money.cost_ceiling(offer.on_demand_price, scale.step)
    return Demand(at, cost, most, 1 + round(draw.expovariate(1 / MEAN_STEPS)), drain)


def limits_of(store: Store, scale: Scale, end: int) -> list[int]:
    """The organization's limit by step up to `end`, from its beginning, at its highest so far."""
    with store.read() as db:
        changes = (
            select(LimitChangeRow.at, LimitChangeRow.limit_after, LimitChangeRow.base)
            .join(AccountRow, AccountRow.id == LimitChangeRow.account)
            .where(AccountRow.kind == "org")
            .order_by(LimitChangeRow.version)
        )
        moved = [((at - BEGINNING) // scale.step, limit + base) for at, limit, base in db.sql.execute(changes)]
    limits, highest = [0] * (end + 1), 0
    for at, limit in moved:
        limits[max(0, min(at, end))] = max(limits[max(0, min(at, end))], limit)
    for step, limit in enumerate(limits):
        highest = max(highest, limit)
        limits[step] = highest
    return limits


def really_overspent(store: Store, scale: Scale, limits: Sequence[int]) -> int:
    """The same of the storm itself, from when its machines ran and what they cost; below 0: so much was always left."""
    spent = [0] * (len(limits) + 1)
    with store.read() as db:
        rows = db.sql.execute(
            select(MachineRow.launched_at, MachineRow.ended_at, MachineRow.price).where(
                MachineRow.ended_at.is_not(None)
            )
        ).all()
    for launched_at, ended_at, price in rows:
        begin, end = ((at - BEGINNING) // scale.step for at in (launched_at, ended_at))
        each = money.cost(price, scale.step)
        spent[min(begin, len(limits))] += each
        spent[min(end, len(limits))] -= each
    total = rate = 0
    worst = -limits[-1]
    for step, limit in enumerate(limits):
        rate += spent[step]
        total += rate
        worst = max(worst, total - limit)
    return worst
