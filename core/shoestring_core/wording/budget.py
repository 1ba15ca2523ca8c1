# SPDX-License-Identifier: Apache-2.0
"""Budgets: why one can't pay for something, and what changed in it. Amounts are decimal dollars."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_core.wording.reason import Reason
from shoestring_core.wording.units import counted, dollars, dollars_up, shortage

_RAISE = "ask for more: shoestring budget request; or have the limit raised: shoestring budget set."


def _capitalized(title: str) -> str:
    """A title such as `team vision` at the start of a sentence."""
    return title[:1].upper() + title[1:]


def _raise_or_wait(held_suffices: bool) -> str:
    return f"Wait for running jobs to end, or {_RAISE}" if held_suffices else _capitalized(_RAISE)


# Refused


@dataclass(frozen=True)
class CostLimitTooLow(Reason):
    """`need`: what its first machines hold."""

    code = "cost_limit_too_low"
    limit: str
    need: str

    def text(self) -> str:
        need, limit = shortage(self.need, self.limit)
        return f"limits.cost is {limit}, but its first machines need {need}."

    def hint(self) -> str:
        return "Raise limits.cost, or use fewer machines."


@dataclass(frozen=True)
class AccountLimitTooLow(Reason):
    """A limit that could never cover the job. `need` is limits.cost, or what its `first_machines` hold."""

    code = "account_limit_too_low"
    account: str
    account_title: str
    limit: str
    need: str
    short_by: str
    first_machines: bool

    def text(self) -> str:
        what = "its first machines need" if self.first_machines else "limits.cost is"
        need, limit = shortage(self.need, self.limit)
        return f"The limit of {self.account_title} is {limit}, but {what} {need}."

    def hint(self) -> str:
        return _capitalized(_RAISE) if self.first_machines else f"Set limits.cost to at most {self.limit}, or {_RAISE}"


@dataclass(frozen=True)
class AccountOverdrawn(Reason):
    """`held_suffices`: running machines hold as much as is missing."""

    code = "account_overdrawn"
    account: str
    account_title: str
    overdraft: str
    need: str
    left: str
    short_by: str
    held_suffices: bool

    def text(self) -> str:
        return (
            f"The budget of {self.account_title} is overdrawn by {dollars(self.overdraft)}: no machines can be started."
        )

    def hint(self) -> str:
        return _raise_or_wait(self.held_suffices)


@dataclass(frozen=True)
class AccountExhausted(Reason):
    """`used`: spent or held of `limit`; `held_suffices`: running machines hold as much as is missing."""

    code = "account_exhausted"
    account: str
    account_title: str
    limit: str
    used: str
    need: str
    left: str
    short_by: str
    held_suffices: bool

    def text(self) -> str:
        need, limit, used = dollars_up(self.need), dollars(self.limit), dollars(self.used)
        return f"This needs {need}; of the {limit} of {self.account_title}, {used} is spent or held."

    def hint(self) -> str:
        return _raise_or_wait(self.held_suffices)


@dataclass(frozen=True)
class PayerOverdrawn(Reason):
    """Running machines can't be funded further."""

    code = "payer_overdrawn"
    account: str

    def text(self) -> str:
        return f"The budget of {self.account} is overdrawn."


# Changed


@dataclass(frozen=True)
class LimitChanged(Reason):
    """`limit` and `before`: None where there was none. `note`: the reason that the admin gave."""

    code = "limit_changed"
    account_title: str
    limit: str | None
    before: str | None
    note: str

    def text(self) -> str:
        limit, before = (dollars(amount) if amount is not None else "none" for amount in (self.limit, self.before))
        return f"Limit of {self.account_title}: {limit}, before: {before}.{f' {self.note}' if self.note else ''}"


@dataclass(frozen=True)
class Granted(Reason):
    """`limit`: with what is granted. `note`: the reason that was given."""

    code = "granted"
    account_title: str
    amount: str
    limit: str | None
    note: str

    def text(self) -> str:
        note = f" {self.note}" if self.note else ""
        limit = "none" if self.limit is None else dollars(self.limit)
        return f"{dollars(self.amount)} granted to {self.account_title}, whose limit is now {limit}.{note}"


@dataclass(frozen=True)
class Transferred(Reason):
    """`note`: the reason that was given."""

    code = "transferred"
    source: str
    target: str
    amount: str
    note: str

    def text(self) -> str:
        return (
            f"{dollars(self.amount)} moved from {self.source} to {self.target}.{f' {self.note}' if self.note else ''}"
        )


@dataclass(frozen=True)
class NothingToMove(Reason):
    code = "nothing_to_move"

    def text(self) -> str:
        return "The amount must be more than $0.00."

    def hint(self) -> str:
        return "To lower a limit: shoestring budget set."


@dataclass(frozen=True)
class TransferToItself(Reason):
    code = "transfer_to_itself"
    account_title: str

    def text(self) -> str:
        return f"Both sides of the transfer are {self.account_title}."

    def hint(self) -> str:
        return "Name two different budgets: shoestring budget show."


@dataclass(frozen=True)
class TransferAcrossBudgets(Reason):
    code = "transfer_across_budgets"
    source: str
    target: str

    def text(self) -> str:
        return f"{_capitalized(self.source)} and {self.target} are not parts of the same budget."

    def hint(self) -> str:
        return "Transfer between two members of a team, or grant dollars to one: shoestring budget grant."


@dataclass(frozen=True)
class NoLimitToMove(Reason):
    code = "no_limit_to_move"
    account_title: str

    def text(self) -> str:
        return f"{_capitalized(self.account_title)} has no limit: dollars can't be added to it or taken from it."

    def hint(self) -> str:
        return "Set a limit first: shoestring budget set."


@dataclass(frozen=True)
class LimitTooLarge(Reason):
    code = "limit_too_large"
    account_title: str
    largest: str

    def text(self) -> str:
        return f"The limit of {self.account_title} would be more than {dollars(self.largest)}."


@dataclass(frozen=True)
class LessLeft(Reason):
    code = "less_left"
    account_title: str
    left: str
    amount: str

    def text(self) -> str:
        title = _capitalized(self.account_title)
        amount, left = shortage(self.amount, self.left)
        return f"{title} has only {left} left that is neither spent nor held, less than {amount}."


@dataclass(frozen=True)
class Requested(Reason):
    """`why`: in the words of the member."""

    code = "budget_requested"
    user: str
    account_title: str
    amount: str
    why: str

    def text(self) -> str:
        return f"{self.user} asks for {dollars(self.amount)} more for {self.account_title}: {self.why}"


@dataclass(frozen=True)
class RequestDecided(Reason):
    """`note`: in the words of who decided it."""

    code = "budget_request_decided"
    decided_by: str
    user: str
    account_title: str
    amount: str
    approved: bool
    note: str

    def text(self) -> str:
        verb = "approved" if self.approved else "denied"
        note = f" {self.note}" if self.note else ""
        what = f"{dollars(self.amount)} for {self.account_title}, which {self.user} asked for"
        return f"{self.decided_by} {verb} {what}.{note}"


@dataclass(frozen=True)
class DecidedBefore(Reason):
    code = "budget_request_decided_before"
    decided_by: str
    approved: bool

    def text(self) -> str:
        return f"{self.decided_by} has already {'approved' if self.approved else 'denied'} this request."

    def hint(self) -> str:
        return "See the requests: shoestring budget requests."


@dataclass(frozen=True)
class RequestExpired(Reason):
    code = "budget_request_expired"
    days: int

    def text(self) -> str:
        return f"The request has expired: nobody decided it within {counted(self.days, 'day')}."

    def hint(self) -> str:
        return "Ask again: shoestring budget request."


@dataclass(frozen=True)
class GrantEffect(Reason):
    """What a grant would take from others. `usable`: what the account could then still spend.

    above_left   what the account above has left for all below it; None: it has no limit
    others_left  what of it would be left if the account spent all
    """

    code = "grant_effect"
    account_title: str
    usable: str
    above_title: str
    above_left: str | None
    others_left: str | None

    def text(self) -> str:
        could = f"{_capitalized(self.account_title)} could then spend {dollars(self.usable)}"
        if self.above_left is None or self.others_left is None:
            return f"{could}. {_capitalized(self.above_title)} has no limit: it takes nothing from others."
        if self.others_left == "0.00":
            return f"{could}, which is all that {self.above_title} has left: nothing is kept for others."
        of_all = f"of the {dollars(self.above_left)} that {self.above_title} has left"
        return f"{could} {of_all}; {dollars(self.others_left)} is kept for others."


@dataclass(frozen=True)
class WeightChanged(Reason):
    """`note`: the reason that the admin gave."""

    code = "weight_changed"
    account_title: str
    weight: int
    before: int
    note: str

    def text(self) -> str:
        note = f" {self.note}" if self.note else ""
        return f"Weight of {self.account_title}: {self.weight}, before: {self.before}.{note}"


@dataclass(frozen=True)
class GuaranteedRateChanged(Reason):
    """Dollars an hour. `note`: the reason that the admin gave."""

    code = "guaranteed_rate_changed"
    account_title: str
    rate: str
    before: str
    note: str

    def text(self) -> str:
        note = f" {self.note}" if self.note else ""
        rate, before = dollars(self.rate), dollars(self.before)
        return f"Guaranteed rate of {self.account_title}: {rate} an hour, before: {before}.{note}"


@dataclass(frozen=True)
class ConcurrencyChanged(Reason):
    """Jobs and GPUs that may run at once; None: no cap. `note`: the reason that was given."""

    code = "concurrency_changed"
    account_title: str
    max_jobs: int | None
    max_gpus: int | None
    jobs_before: int | None
    gpus_before: int | None
    note: str

    def text(self) -> str:
        note = f" {self.note}" if self.note else ""
        now, before = _caps(self.max_jobs, self.max_gpus), _caps(self.jobs_before, self.gpus_before)
        return f"Concurrency cap of {self.account_title}: {now}, before: {before}.{note}"


def _caps(jobs: int | None, gpus: int | None) -> str:
    caps = [counted(cap, what) for cap, what in ((jobs, "job"), (gpus, "GPU")) if cap is not None]
    return " and ".join(caps) or "none"


@dataclass(frozen=True)
class PeriodChanged(Reason):
    """`kind`: one_off | month | term. `ends`: its end, in its time zone. `note`: the reason that was given.

    begins  when it begins, if it hasn't
    """

    code = "period_changed"
    account_title: str
    kind: str
    ends: str | None
    carries_over: bool
    note: str
    begins: str | None = None

    def text(self) -> str:
        title, note = _capitalized(self.account_title), f" {self.note}" if self.note else ""
        if self.ends is None:
            return f"{title} now has a one-off budget: its limit doesn't expire.{note}"
        if self.begins is not None:
            until = "" if self.kind == "month" else f" until {self.ends}"
            what = "a monthly budget" if self.kind == "month" else "a budget for a term"
            left = "carries over to it" if self.carries_over else "expires then"
            return f"{title} has {what} from {self.begins} on{until}. What is unspent by then {left}.{note}"
        period = "a monthly budget: this month ends" if self.kind == "month" else "a budget for a term, which ends"
        left = "carries over to the next" if self.carries_over else "expires then"
        return f"{title} now has {period} {self.ends}. What is unspent {left}.{note}"


@dataclass(frozen=True)
class RolledOver(Reason):
    """`border`: when the last period ended, in its time zone. `limit`: of the new one."""

    code = "rolled_over"
    account_title: str
    border: str
    limit: str
    carried_over: str
    expired: str

    def text(self) -> str:
        left = f"{dollars(self.carried_over)} carried over"
        left += "" if self.expired == "0.00" else f", {dollars(self.expired)} expired"
        return (
            f"The period of {self.account_title} ended {self.border}: {left}. The limit is now {dollars(self.limit)}."
        )


@dataclass(frozen=True)
class HeldBeforeBorder(Reason):
    """What was held before the last border, and not spent."""

    code = "held_before_border"
    account_title: str
    carried_over: str
    expired: str

    def text(self) -> str:
        return (
            f"Held for {self.account_title} before its last period ended, and not spent: "
            f"{dollars(self.carried_over)} carried over, {dollars(self.expired)} expired."
        )


@dataclass(frozen=True)
class NoLimitForPeriod(Reason):
    code = "no_limit_for_period"
    account_title: str

    def text(self) -> str:
        return f"{_capitalized(self.account_title)} has no limit, so it can't have periods."

    def hint(self) -> str:
        return "Set a limit first: shoestring budget set."


@dataclass(frozen=True)
class LimitWontLast(Reason):
    """`expected`: spent by the end of the period, if nothing stopped it. `ends`, `exhausted`: in its time zone."""

    code = "limit_wont_last"
    account_title: str
    expected: str
    limit: str
    ends: str
    exhausted: str

    def text(self) -> str:
        return (
            f"At this pace {self.account_title} would spend {dollars(self.expected)} by {self.ends}, more than its "
            f"limit of {dollars(self.limit)}, which would be spent by {self.exhausted}."
        )


@dataclass(frozen=True)
class SoftLineReached(Reason):
    """`used`: spent or held of `limit`; `held_suffices`: running machines hold as much as is missing."""

    code = "soft_line_reached"
    account_title: str
    percent: int
    limit: str
    used: str

    def text(self) -> str:
        title = _capitalized(self.account_title)
        used = f"{dollars(self.used)} of {dollars(self.limit)}"
        return f"{title} has reached {self.percent} % of its limit: {used} is spent or held."


@dataclass(frozen=True)
class SoftLinesChanged(Reason):
    """`note`: the reason that was given."""

    code = "soft_lines_changed"
    account_title: str
    percents: tuple[int, ...]
    note: str

    def text(self) -> str:
        lines = ", ".join(f"{percent} %" for percent in self.percents) or "none"
        return f"Soft lines of {self.account_title}: {lines}.{f' {self.note}' if self.note else ''}"


@dataclass(frozen=True)
class LimitBelowUse(Reason):
    """The new limit is below what is spent and held already."""

    code = "limit_below_use"
    account_title: str
    overdraft: str

    def text(self) -> str:
        return f"The new limit of {self.account_title} is {dollars_up(self.overdraft)} below what is spent and held."
