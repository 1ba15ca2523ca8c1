# SPDX-License-Identifier: Apache-2.0
"""Why a queued job waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shoestring_core.states import WaitReason
from shoestring_core.wording.offers import NearestOffer, UnknownName
from shoestring_core.wording.reason import NestedReason, Reason
from shoestring_core.wording.units import counted, dollars, dollars_up, moment


@dataclass(frozen=True)
class WaitDetail(Reason):
    """What exactly a job waits for. `waits_for` is the kind of thing, which a job's `wait_reason` records."""

    waits_for: ClassVar[WaitReason]


@dataclass(frozen=True)
class NoOffer(WaitDetail):
    """No offer meets what the job requires.

    wanted   the conditions as they stand in `resources`, such as "gpu: H100"
    unmet    those of them that no offer meets even by itself
    why      more about the first of these
    nearest  None: nothing is offered
    """

    code = "no_offer"
    waits_for = WaitReason.CAPACITY
    wanted: tuple[str, ...]
    unmet: tuple[str, ...] = ()
    why: NestedReason | None = None
    nearest: NearestOffer | None = None

    def text(self) -> str:
        wanted, unmet = ([f"`{condition}`" for condition in some] for some in (self.wanted, self.unmet))
        if unmet:
            sentences = [f"No machine is offered with {', and none with '.join(unmet)}."]
        elif len(wanted) > 1:
            sentences = [f"Machines are offered with {', or with '.join(wanted)}, but none with all of it."]
        else:
            sentences = [f"No machine is offered{' with ' * bool(wanted)}{''.join(wanted)}."]
        if self.why:
            sentences.append(self.why.text())
        if self.nearest and not (isinstance(self.why, UnknownName) and self.why.nearest):
            sentences.append(self.nearest.text())
        return " ".join(sentences)


@dataclass(frozen=True)
class ProviderUnanswered(WaitDetail):
    """`problem`: that somebody has to solve before it answers, as a sentence; "": none is known.

    yet  a worker that has just started asks it for its first offers
    """

    code = "provider_unanswered"
    waits_for = WaitReason.CAPACITY
    provider: str
    problem: str = ""
    yet: bool = False

    def text(self) -> str:
        if self.yet and not self.problem:
            return f"Fetching the first offers of {self.provider}. The job starts once they are known."
        problem = f" {self.problem.rstrip('.')}." if self.problem else ""
        return f"{self.provider} does not answer.{problem} The job starts once it does."


@dataclass(frozen=True)
class ProviderUnserved(WaitDetail):
    """The job names a provider that a worker once served, and none does now.

    since  when it last said what it offers (µs UTC); None: that isn't known
    """

    code = "provider_unserved"
    waits_for = WaitReason.CAPACITY
    provider: str
    since: int | None = None

    def text(self) -> str:
        unserved = f"serves {self.provider} now" if self.since is None else (
            f"has served {self.provider} since {moment(self.since)}"
        )  # fmt: skip
        return (
            f"No worker {unserved}. The job starts once a worker's SHOESTRING_PROVIDERS names it; otherwise end the "
            "job (shoestring stop), and submit it with another resources.provider."
        )


@dataclass(frozen=True)
class NothingStorable(WaitDetail):
    """`problem`: with the object store, as a sentence; "": its credentials are about to end."""

    code = "nothing_storable"
    waits_for = WaitReason.CAPACITY
    problem: str

    def text(self) -> str:
        problem = self.problem or "The credentials for that expire in a moment and have not been renewed."
        return f"Checkpoints can't be stored now. {problem} The job starts automatically once they can."


@dataclass(frozen=True)
class QuotaExhausted(WaitDetail):
    code = "quota_exhausted"
    waits_for = WaitReason.QUOTA
    provider: str
    type: str
    market: str

    def text(self) -> str:
        return (
            f"The account's quota of {self.type} machines ({self.market}) at {self.provider} is exhausted. It is tried "
            "again every few minutes; have the quota raised, or wait for other machines to end."
        )


@dataclass(frozen=True)
class QuotaBelowNeed(WaitDetail):
    """The account may never run as much at once. In vCPUs: `vcpus` is the quota, `needed` what the job needs."""

    code = "quota_below_need"
    waits_for = WaitReason.QUOTA
    provider: str
    region: str
    quota: str
    vcpus: int
    type: str
    market: str
    nodes: int
    needed: int
    raised_at: str

    def text(self) -> str:
        market = self.market.replace("_", " ")
        return (
            f"Needs {counted(self.needed, 'vCPU')} for {self.nodes} × {self.type} ({market}), and the quota "
            f'"{self.quota}" of the account at {self.provider} in {self.region} is {self.vcpus}. Ask for at least '
            f"{self.needed} at {self.raised_at}; the job starts automatically once it is granted."
        )


@dataclass(frozen=True)
class QuotaInUse(WaitDetail):
    """In vCPUs: `vcpus` is the quota, `free` what our machines leave of it, `needed` what the job needs. `behind`: an
    earlier job waits for it."""

    code = "quota_in_use"
    waits_for = WaitReason.QUOTA
    provider: str
    region: str
    quota: str
    vcpus: int
    free: int
    needed: int
    behind: bool = False

    def text(self) -> str:
        behind = "; an earlier job waits for them too" if self.behind else ""
        return (
            f'Needs {counted(self.needed, "vCPU")} of the quota "{self.quota}" of the account at {self.provider} in '
            f"{self.region}, {self.free} of {self.vcpus} {'is' if self.free == 1 else 'are'} free{behind}. It "
            "starts automatically when machines end."
        )


@dataclass(frozen=True)
class TooFewSlots(WaitDetail):
    code = "too_few_slots"
    waits_for = WaitReason.CAPACITY
    nodes: int
    provider: str
    slots: int

    def text(self) -> str:
        return (
            f"Needs {counted(self.nodes, 'machine')} at once, and {self.provider} has {self.slots} in all. Submit it "
            f"with fewer, or raise the limit: on this computer with shoestring up --slots {self.nodes}."
        )


@dataclass(frozen=True)
class EarlierMachinesTerminating(WaitDetail):
    code = "earlier_machines_terminating"
    waits_for = WaitReason.TERMINATING
    count: int

    def text(self) -> str:
        one = self.count == 1
        return (
            f"{counted(self.count, 'earlier machine')} {'is' if one else 'are'} still terminating; "
            f"the job continues once the provider confirms that {'it has' if one else 'they have'} terminated."
        )


@dataclass(frozen=True)
class RetryDelayed(WaitDetail):
    code = "retry_delayed"
    waits_for = WaitReason.CAPACITY

    def text(self) -> str:
        return "The last attempt ended before its first step. It is retried with increasing delays."


@dataclass(frozen=True)
class BehindRefusedJob(WaitDetail):
    code = "behind_refused_job"
    waits_for = WaitReason.CAPACITY

    def text(self) -> str:
        return "The provider has just refused such machines to an earlier job, which is tried again first."


@dataclass(frozen=True)
class BudgetOverdrawn(WaitDetail):
    """`own`: it is the job's own limit."""

    code = "budget_overdrawn"
    waits_for = WaitReason.BUDGET
    account: str
    overdraft: str
    own: bool = False

    def text(self) -> str:
        return (
            f"The budget of {self.account} is overdrawn by {dollars(self.overdraft)}, so no job that it pays for can "
            f"start. {_raise(self.own)}"
        )


@dataclass(frozen=True)
class BudgetShort(WaitDetail):
    """`need`: what is held to start all machines; `missing`: the part that the account can't cover; `held_suffices`:
    running machines hold as much, and free what they don't use of it when they end."""

    code = "budget_short"
    waits_for = WaitReason.BUDGET
    account: str
    need: str
    missing: str
    nodes: int
    own: bool = False
    held_suffices: bool = False

    def text(self) -> str:
        return (
            f"The budget of {self.account} is {dollars_up(self.missing)} short: starting "
            f"{counted(self.nodes, 'machine')} reserves {dollars_up(self.need)}. "
            f"{_raise(self.own, waiting_helps=self.held_suffices)}"
        )


@dataclass(frozen=True)
class InQueue(WaitDetail):
    """Of a job that the scheduler has not looked at, because none behind those that it looked at could start."""

    code = "in_queue"
    waits_for = WaitReason.TURN

    def text(self) -> str:
        return "It starts automatically."


@dataclass(frozen=True)
class LessUsed(Reason):
    """Why a job of `first`, a team or a member, goes before one of `second`: it used fewer dollars for its weight.

    Used is what was spent lately, and what is held now.
    """

    code = "less_used"
    first: str
    second: str
    first_used: str
    second_used: str
    first_weight: int
    second_weight: int

    def text(self) -> str:
        weighted = self.first_weight != self.second_weight
        first, second = (f" at weight {one}" if weighted else "" for one in (self.first_weight, self.second_weight))
        used = f"{self.first} has used {dollars(self.first_used)} lately{first}"
        return f"{used}, {self.second} {dollars(self.second_used)}{second}"


@dataclass(frozen=True)
class WithinGuaranteedRate(Reason):
    """Why a job goes before those of other teams: its team stays with it within the rate that it is guaranteed.

    `rate` and `guaranteed` are dollars an hour.
    """

    code = "within_guaranteed_rate"
    team: str
    rate: str
    guaranteed: str

    def text(self) -> str:
        return f"{self.team} uses {dollars(self.rate)} an hour of the {dollars(self.guaranteed)} that it is guaranteed"


@dataclass(frozen=True)
class BehindJobShortOfBudget(WaitDetail):
    """`first`: why that job goes first; None: it came first."""

    code = "behind_job_short_of_budget"
    waits_for = WaitReason.TURN
    account: str
    first: NestedReason | None = None

    def text(self) -> str:
        if self.first is None:
            return f"Queued behind an earlier job, which waits for the budget of {self.account}."
        return f"Queued behind a job that waits for the budget of {self.account} and goes first: {self.first.text()}."


@dataclass(frozen=True)
class JobsAtCap(WaitDetail):
    """Of `account` as many jobs run as may at once."""

    code = "jobs_at_cap"
    waits_for = WaitReason.CAP
    account: str
    jobs: int
    cap: int

    def text(self) -> str:
        account = self.account[:1].upper() + self.account[1:]
        if not self.cap:
            return f"{account} may start no job now: its concurrency cap is 0. {_RAISE_CAP}"
        return f"{account} runs {self.jobs} of at most {counted(self.cap, 'job')} at once. {_STARTS_AT_CAP}"


@dataclass(frozen=True)
class GpusAtCap(WaitDetail):
    """The job needs `needed` GPUs at least, and `account` has `gpus` of the `cap` that it may have at once."""

    code = "gpus_at_cap"
    waits_for = WaitReason.CAP
    account: str
    needed: int
    gpus: int
    cap: int

    def text(self) -> str:
        needs = f"Needs {counted(self.needed, 'GPU')}, and {self.account}"
        if self.needed > self.cap:
            return f"{needs} may have at most {self.cap} at once. Ask for fewer; or: {_RAISE_CAP}"
        return f"{needs} has {self.gpus} of at most {self.cap} at once. {_STARTS_AT_CAP}"


@dataclass(frozen=True)
class BehindJobAtCap(WaitDetail):
    """`first`: why the job that waits for GPUs of `account` goes first; None: it came first."""

    code = "behind_job_at_cap"
    waits_for = WaitReason.TURN
    account: str
    first: NestedReason | None = None

    def text(self) -> str:
        waits = f"waits for the GPUs that {self.account} may have at once"
        if self.first is None:
            return f"Queued behind an earlier job, which {waits}."
        return f"Queued behind a job that {waits} and goes first: {self.first.text()}."


@dataclass(frozen=True)
class MachinesInUse(WaitDetail):
    """`free` of `slots` machines are free, both None without a limit; `behind`: another job waits for them and goes
    first, for the reason `first`; None: it came first."""

    code = "machines_in_use"
    waits_for = WaitReason.SLOTS
    nodes: int
    free: int | None
    slots: int | None
    behind: bool
    first: NestedReason | None = None

    def text(self) -> str:
        text = f"Needs {counted(self.nodes, 'machine')}"
        if self.free is not None:
            text += f", {self.free} of {self.slots} {'is' if self.free == 1 else 'are'} free"
        if self.first is not None:
            text += f"; another job goes first: {self.first.text()}"
        elif self.behind:
            text += "; an earlier job waits for them too"
        return text + ". It starts automatically when machines become free."


_RAISE_CAP = "A lead raises it with `shoestring budget concurrency`."
_STARTS_AT_CAP = "It starts automatically when enough of them have ended."


def _raise(own: bool, *, waiting_helps: bool = False) -> str:
    """Who may not set a limit can ask for dollars; but not for a job's own limit."""
    if own:
        return "Ask for it to be raised with `shoestring budget set --job`."
    ask = "Wait for running jobs to end, ask" if waiting_helps else "Ask"
    return f"{ask} for more with `shoestring budget request`, or have the limit raised with `shoestring budget set`."
