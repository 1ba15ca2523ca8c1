# SPDX-License-Identifier: Apache-2.0
"""Whether a deadline can be promised, on which machines, and what that commits."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from shoestring_core.decide.deadlines import INTERVAL, DeadlinePlan, cost_on_demand, rounded_up
from shoestring_core.decide.quotes import QuotedOffer, QuoteInputs, make_quote
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import DeadlineUnmet
from shoestring_core.wording import deadlines as reasons


def plan_deadline(inputs: QuoteInputs, deadline: int) -> DeadlinePlan:
    """On the cheapest on-demand machines that are in time. Raises DeadlineUnmet if none are, or nothing says so."""
    now, requirements = inputs.now, replace(inputs.requirements, spot="never")
    if deadline <= now:
        raise DeadlineUnmet(reasons.DeadlinePassed(deadline))
    quote = make_quote(replace(inputs, requirements=requirements, machine_counts=()))
    if not quote.offers:
        raise DeadlineUnmet(reasons.NoOnDemandMachines(quote.no_offer))
    plans = [plan for quoted in quote.offers if (plan := _plan_on(quoted, inputs, deadline))]
    if not plans:
        raise DeadlineUnmet(reasons.DurationUnknown())
    for plan in plans:
        if plan.work + plan.changeover <= (deadline - now) // INTERVAL * INTERVAL:
            return plan
    fastest = min(plans, key=lambda plan: plan.work + plan.changeover)
    needed = fastest.work + fastest.changeover + INTERVAL
    raise DeadlineUnmet(reasons.DeadlineTooEarly(deadline, now + needed, needed, fastest.type, fastest.nodes))


def _plan_on(quoted: QuotedOffer, inputs: QuoteInputs, deadline: int) -> DeadlinePlan | None:
    """None: nothing says how long it takes there."""
    offer, forecast, limit_s = quoted.offer, quoted.forecast, inputs.sizing.time_limit_s
    timeouts = inputs.sizing.timeouts[offer.provider]
    if forecast is not None and quoted.time_s is not None and quoted.basis != "unknown":
        work = round(max(forecast.run_s, quoted.time_s.high - forecast.boot_s) * S)
        teardown, start = round(forecast.teardown_s * S), round(forecast.restart_s * S)
        basis: Literal["measured", "scaled", "time_limit"] = quoted.basis
    elif limit_s is not None:
        work, basis = round(limit_s * S), "time_limit"
        teardown, start = timeouts.drain, timeouts.boot + timeouts.forming
    else:
        return None
    changeover = rounded_up(teardown + start)
    return DeadlinePlan(
        begun_at=inputs.now,
        deadline=deadline,
        provider=offer.provider,
        type=offer.type,
        nodes=quoted.nodes,
        work=work,
        changeover=changeover,
        teardown=teardown,
        worst_case=cost_on_demand(offer, quoted.nodes, work, changeover, timeouts),
        basis=basis,
        runs=quoted.runs,
    )
