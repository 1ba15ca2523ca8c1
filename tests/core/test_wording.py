# SPDX-License-Identifier: Apache-2.0
"""Every reason has a sentence, and is the same after it was stored."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoestring_core import wording
from shoestring_core.errors import BudgetExceeded, InvalidState
from shoestring_core.states import EndReason, StopReason, WaitReason
from shoestring_core.wording import (
    Reason,
    agents,
    attempts,
    audit,
    bills,
    budget,
    deadlines,
    jobs,
    machines,
    notices,
    offers,
    people,
    queue,
    quotes,
    sizing,
    waits,
)
from shoestring_core.wording.reason import UnknownReason
from shoestring_core.wording.units import batches_of_steps, dollars, moment, shortage

ONE = sizing.MachineEstimate(1, "local.cpu", "measured", 130.0, 143.0, "0.0058")
TWO = sizing.MachineEstimate(2, "local.cpu", "estimated", 70.0, 91.0, "0.0062")
SHORTAGE = {
    "account": "0193", "account_title": "team vision", "need": "0.20", "left": "0.08", "short_by": "0.12",
    "held_suffices": True,
}  # fmt: skip

AT = 1_796_342_400_000_000

EXAMPLES: list[Reason] = [
    # deadlines
    deadlines.DeadlinePassed(AT),
    deadlines.NoOnDemandMachines(waits.NoOffer(("gpu: H100",), ("gpu: H100",))),
    deadlines.DurationUnknown(),
    deadlines.DeadlineTooEarly(AT, AT + 3_600_000_000, 7_200_000_000, "g5.xlarge", 2),
    deadlines.DeadlineUnaffordable("team vision", "60.00", "12.50", own_limit=False),
    deadlines.DeadlineKept("spot", False, AT, AT + 21_600_000_000, "policy", "41.20"),
    deadlines.DeadlinePromised(AT, "60.00", "140.00", "team vision", 172_800_000_000, 3),
    deadlines.MarketChanged("on_demand", "deadline", AT),
    deadlines.ForSpot(AT, AT + 21_600_000_000),
    # people
    people.OddColumns("nam, role"),
    people.EmptyList(),
    people.TooManyLines(1_000),
    people.OddCells(2, 3),
    people.NotCsv("unexpected end of data"),
    people.NameRepeated("ada", 3),
    people.NameTaken("ada"),
    people.OddName(100),
    people.OddRole("boss", "viewer, member, lead, admin"),
    people.OddLimit("'-1' is negative"),
    people.InvitationUsed(),
    people.InvitationExpired(),
    people.InvitationRevoked(),
    # audit
    audit.EntriesMissing(7, 1_200),
    audit.EntryChanged(3),
    audit.LogCut(40, 50),
    audit.LogReplaced(50, 3),
    audit.SealsLost(4),
    audit.SealMissing(4),
    audit.SealForged(4),
    audit.SealDiffers(4),
    # quotes
    quotes.QuoteWas("2 × g5.xlarge", "on_demand", 540.0, 720.0, "1.80", "2.40", quotes.QuoteNotCompared("paused")),
    quotes.QuoteHeld(600.0, "2.50", "within", "above"),
    quotes.QuoteNotCompared("other_machines"),
    quotes.Calibrated(12, 10, 9, 80),
    # queue
    queue.Outlook(
        queue.StartsAt(datetime(2026, 11, 29, 2, tzinfo=UTC), 7200.0, "1 × g6.xlarge (L4, spot)", "0.42"),
        queue.StartsElsewhere("1 × g5.xlarge (A10G, spot)", "0.31", False, ("resources.instance=g5.xlarge",)),
    ),
    queue.StartsAt(datetime(2026, 11, 29, 2, tzinfo=UTC), 200_000.0, "2 × local.cpu (spot)", None),
    queue.StartsNow("1 × local.cpu (spot)", "0.02"),
    queue.StartUnknown(held_up=False),
    queue.StartsElsewhere("1 × local.cpu (spot)", "-0.02", True, ("resources.spot=prefer",)),
    queue.WhatIfMoves(2, 0, 1, 0, 1),
    # waits
    waits.NoOffer(
        ("gpu: H100", "zones: us-east-1a"),
        ("gpu: H100",),
        offers.ListedOnly("ec2", "p5.48xlarge", "8 × H100 with 80 GB", "55.04", served=True),
        offers.NearestOffer("g6e.xlarge", "ec2", "us-east-1a", "1 × L40S with 48 GB", "spot", "0.78", ("gpu",)),
    ),
    waits.ProviderUnserved("ec2", 1_795_900_000_000_000),
    waits.ProviderUnanswered("ec2", "Set the clock of the service's computer"),
    waits.NothingStorable("The credentials can't be renewed."),
    waits.QuotaExhausted("ec2", "g5.xlarge", "spot"),
    waits.QuotaBelowNeed(
        "ec2", "us-east-1", "All G and VT Spot Instance Requests", 0, "g5.xlarge", "spot", 2, 8, "the console"
    ),
    waits.QuotaInUse("ec2", "us-east-1", "All G and VT Spot Instance Requests", 8, 4, 8),
    waits.TooFewSlots(9, "local", 4),
    waits.EarlierMachinesTerminating(1),
    waits.RetryDelayed(),
    waits.BehindRefusedJob(),
    waits.BudgetOverdrawn("team vision", "0.12"),
    waits.BudgetShort("this job", "0.20", "0.12", 1, own=True),
    waits.InQueue(),
    waits.BehindJobShortOfBudget("team vision"),
    waits.MachinesInUse(2, 1, 4, behind=True),
    waits.LessUsed("team speech", "team vision", "0.40", "3.10", 1, 1),
    waits.WithinGuaranteedRate("team speech", "0.53", "2.00"),
    waits.JobsAtCap("team vision", 4, 4),
    waits.GpusAtCap("member ada", 4, 6, 8),
    waits.BehindJobAtCap("team vision"),
    # attempts
    attempts.GangComplete(),
    attempts.FewerMachines(3, 4),
    attempts.MachinePreempted(0),
    attempts.MachineLost(1, "crashed"),
    attempts.MachineNeverRegistered(1),
    attempts.MachineNotReady(1),
    attempts.TooFewMachines(),
    attempts.QuotaTooLow(),
    attempts.SpotPriceTooHigh(),
    attempts.PreemptionNoticed(),
    attempts.StoppedWithoutOrder(),
    attempts.AttemptEnded(),
    attempts.RankKilled(1),
    attempts.RankFailed(0, "CUDA error"),
    attempts.HardwareFailed(0, 1, "CUDA error: uncorrectable ECC error encountered"),
    attempts.RanksLeftBehind(),
    attempts.NoFinalCheckpoint(),
    attempts.RolledBack("the loss is nan", 27, 30),
    attempts.RetryNotAllowed("preempted", "interruption"),
    attempts.RetriesExhausted(6, 5),
    attempts.NeverTrained(8, attempts.MachineLost(1, "crashed")),
    attempts.RanksKeptFailing(4, ""),
    attempts.RepeatedlyNoFinalCheckpoint(),
    attempts.TrainingFailed(0, "data", "class a is empty"),
    attempts.NanPersisted("the loss is nan", ((30, 30), (27, 30))),
    # jobs: status
    jobs.AwaitingApproval(),
    jobs.Waiting(WaitReason.SLOTS, waits.RetryDelayed()),
    jobs.StartingMachines(),
    jobs.Recovering(2, ((4, 5),)),
    jobs.Preparing(()),
    jobs.Training(((4, 5),)),
    jobs.WithTrouble(jobs.Training(()), jobs.StorageLost("The credentials can't be renewed.", 1_795_878_240_000_000)),
    jobs.StorageLost("The credentials can't be renewed.", 1_795_878_240_000_000),
    jobs.StorageRestored(),
    jobs.Exporting(()),
    jobs.Stopping(StopReason.TIME_LIMIT),
    jobs.PausedByBudget(waits.BudgetShort("team vision", "0.20", "0.12", 1)),
    jobs.BudgetStillExhausted(waits.BudgetShort("team vision", "0.20", "0.12", 1)),
    jobs.Paused(),
    jobs.Ended(EndReason.DATA, attempts.TrainingFailed(0, "data", "class a is empty"), ()),
    # jobs: moves
    jobs.Submitted(),
    jobs.RetryOf("0193"),
    jobs.AttemptStarted(1, 2, "local.cpu", "spot"),
    jobs.GenerationFormed(3),
    jobs.FinishedAtStep(2697),
    jobs.MachinesTerminated(),
    jobs.StopRequested(),
    jobs.ResumeRequested(),
    jobs.BudgetRaised(),
    jobs.TimeLimitReached(300.0),
    jobs.Evicted("team speech", "2.00", "0.53", "team vision", "1.00", "3.16"),
    jobs.CannotPause("awaiting_approval"),
    jobs.CannotResume("ended"),
    jobs.CannotRetry("running"),
    jobs.CannotMove("ended", "queued"),
    jobs.BeingStopped(),
    jobs.ChangedMeanwhile(),
    jobs.ScheduleOutdated("0193"),
    # money
    budget.CostLimitTooLow("0.01", "0.02"),
    budget.AccountLimitTooLow("0193", "team vision", "1.00", "5.00", "4.00", first_machines=False),
    budget.AccountOverdrawn(**SHORTAGE, overdraft="0.01"),
    budget.AccountExhausted(**SHORTAGE, limit="1.00", used="0.92"),
    budget.PayerOverdrawn("team vision"),
    bills.HoldConflict("0193"),
    bills.HoldAlreadyOpen("0193"),
    bills.BillWithoutHold("0193"),
    bills.Usage(68_700_000, "local.cpu", "spot", "0.158"),
    bills.FreeInterruption(68_000_000, "g5.xlarge"),
    bills.ExtraUsage("a public IPv4 address", 68_000_000, "3.600"),
    bills.NeverRan(),
    bills.NotBilled(),
    bills.JobSettled(),
    bills.Overrun("0193", "0.01"),
    budget.LimitChanged("team vision", "2.00", None, "a grant"),
    budget.WeightChanged("team vision", 2, 1, "a grant"),
    budget.GuaranteedRateChanged("team vision", "2.00", "0.00", "two machines"),
    budget.ConcurrencyChanged("team vision", 4, 8, None, None, "one sweep at a time"),
    budget.LimitBelowUse("team vision", "0.50"),
    budget.Granted("team vision", "2.00", "12.00", "a sweep"),
    budget.Transferred("member ada", "member ben", "2.00", "a sweep"),
    budget.NothingToMove(),
    budget.TransferToItself("member ada"),
    budget.TransferAcrossBudgets("member ada", "team vision"),
    budget.NoLimitToMove("member ada"),
    budget.LimitTooLarge("member ada", "1000000000.00"),
    budget.LessLeft("member ada", "1.50", "2.00"),
    budget.PeriodChanged("team vision", "month", "2026-12-01 00:00 Europe/Berlin", True, "from now on"),
    budget.RolledOver("team vision", "2026-12-01 00:00 Europe/Berlin", "110.00", "10.00", "2.50"),
    budget.HeldBeforeBorder("team vision", "0.00", "0.04"),
    budget.NoLimitForPeriod("member ada"),
    budget.LimitWontLast("team vision", "12.50", "10.00", "2026-12-01 00:00 UTC", "2026-11-20 06:30 UTC"),
    budget.SoftLineReached("team vision", 80, "10.00", "8.25"),
    budget.SoftLinesChanged("team vision", (50, 80, 100), "two more weeks"),
    budget.Requested("ada", "member ada", "5.00", "three more seeds"),
    budget.RequestDecided("ann", "ada", "member ada", "5.00", True, "good luck"),
    budget.DecidedBefore("ann", False),
    budget.RequestExpired(14),
    budget.GrantEffect("member ada", "7.00", "team vision", "20.00", "13.00"),
    # machines
    machines.LaunchRefused("capacity", "no spot machines"),
    machines.LaunchUnanswered("The clock of the service's computer is 10 minutes behind AWS's: set it."),
    machines.MachinePlanned(0, "g5.xlarge", "spot", "us-east-1a", "0.41"),
    machines.LaunchNotNeeded(),
    machines.TerminationRequested(),
    machines.NotNeeded(),
    machines.FundingExpired(),
    machines.LeaseExpired(),
    machines.Untracked(),
    machines.NotReadyInTime(),
    machines.NoLongerListed(),
    machines.EndedByProvider("preempted"),
    machines.BootFailed(1, "image", "driver", "the image has NVIDIA's driver 535.1.1; PyTorch needs 580 or later"),
    machines.ServiceUnreachable(1),
    machines.MachineSilent(1, 300),
    machines.PreemptionAnnounced(),
    machines.LeftToProvider(1_700_000_000_000_000),
    machines.RanksExited(("drained", "signal")),
    machines.PreemptionNotSimulated("ec2"),
    machines.MachineNotRunning("terminating"),
    machines.MachineHostRefused("too late"),
    machines.SecretRefused("boot_token"),
    # offers
    offers.AccountQuota("ec2", "us-east-1", "All G and VT Spot Instance Requests", 8, "g5.xlarge", 4, "the console"),
    offers.OtherArchitecture("arm64"),
    offers.OtherGpuMaker("AMD"),
    offers.GpuTooOld("7.0"),
    offers.SizeUnknown(),
    offers.PricesUnknown("us-east-1"),
    offers.RegionNotOffered("ec2", "eu-west-1", served=False),
    offers.UnknownName("GPU", "A10", "A10G", ("A100", "A10G")),
    offers.LeftOutOffer("V100", offers.GpuTooOld("7.0")),
    offers.ListedOnly("ec2", "g5.xlarge", "1 × A10G with 24 GB", "1.006", served=False),
    offers.DearerThanLimit(2, "g5.xlarge", "2.40", "2.00"),
    offers.NoDiskChoice("local"),
    offers.DiskBounds("ec2", "gp3", (16_384, 16_000, 1_000), 500, "0.25"),
    # sizing
    sizing.Sized(sizing.MachinesChosen(ONE, None, None), sizing.WillBeMeasured()),
    sizing.MachinesChosen(TWO, 60.0, 91),
    sizing.MachinesQuoted("2 × local.cpu", True, 300.0, None),
    sizing.NotMeasured(2, 300.0, "0.316"),
    sizing.CountNotMeasured(64, (1, 2, 3, 4), None, None),
    sizing.TimeLimitTooShort(TWO, 10.0, 91),
    sizing.NoFeasibleMachines(100.0, sizing.FasterOverSlots(TWO, "local", 1)),
    sizing.WhyNotFaster((sizing.NoMoreMachines("local", 2), sizing.FixedTime(8.4))),
    sizing.WillBeMeasured(),
    sizing.FasterCostsMore(TWO, "0.0004"),
    sizing.FasterOverBudget(TWO, "0.04", "0.01", "team vision"),
    sizing.FasterOverRate(TWO, "1.20"),
    sizing.FasterOverSlots(TWO, "local", 1),
    sizing.FasterSplitsBatch(TWO, 4, 6),
    sizing.MoreNotFaster(TWO, 0.5),
    sizing.NoMoreMachines("local", 2),
    sizing.MoreNotMeasured(2, "local.cpu"),
    sizing.FixedTime(10.0),
    sizing.TypesNotMeasured(("big",)),
    # agents
    agents.BootPhase("driver", "NVIDIA driver 580.95.05, NVIDIA A10G", seconds=0.4),
    agents.TrainingStarted(2697, 2, "fp16"),
    agents.GradientOverflow(32768.0),
    agents.BatchSkipped(),
    agents.ModelExporting(),
    agents.PreemptionNotice(),
    agents.AgentMessage("disk_full", ""),
    agents.CheckpointSaved("order", 1761),
    notices.CheckpointOutlastsNotice("offered", "g4dn.xlarge", 6_100_000_000, 210.4, 114.0),
    UnknownReason("a_later_version"),
]
SENTENCES = dict(
    line.split(": ", 1) for line in Path(__file__).with_name("wording.txt").read_text(encoding="utf-8").splitlines()
)
st.register_type_strategy(Reason, st.sampled_from(EXAMPLES))


@pytest.mark.parametrize("reason", EXAMPLES, ids=lambda reason: reason.code)
def test_each_reason_has_its_sentence_also_after_it_was_stored(reason: Reason) -> None:
    stored = json.loads(json.dumps(reason.as_json()))
    assert wording.parse(**stored) == reason
    assert wording.render(**stored) == wording.sentence(reason) == SENTENCES[reason.code]


def test_a_provider_that_no_worker_serves_is_told_with_since_when_if_that_is_known() -> None:
    assert waits.ProviderUnserved("ec2").text().startswith("No worker serves ec2 now. The job starts")
    assert "(shoestring stop)" in waits.ProviderUnserved("ec2", 0).text()


def test_a_wait_behind_another_team_says_what_both_have_used_and_weights_that_differ() -> None:
    equal = waits.LessUsed("team speech", "team vision", "0.40", "3.10", 2, 2)
    assert wording.sentence(waits.BehindJobShortOfBudget("organization home", equal)) == (
        "Queued behind a job that waits for the budget of organization home and goes first: team speech has used $0.40 "
        "lately, team vision $3.10."
    )
    weighted = waits.LessUsed("team speech", "team vision", "4.00", "3.10", 2, 1)
    stored = json.loads(json.dumps(waits.MachinesInUse(1, 0, 4, behind=True, first=weighted).as_json()))
    assert wording.render(**stored) == (
        "Needs 1 machine, 0 of 4 are free; another job goes first: team speech has used $4.00 lately at weight 2, "
        "team vision $3.10 at weight 1. It starts automatically when machines become free."
    )


def test_each_code_has_an_example() -> None:
    assert {reason.code for reason in EXAMPLES} == set(SENTENCES) == set(Reason.known)


@given(st.sampled_from(list(Reason.known.values())).flatmap(st.from_type))
def test_rendering_never_raises_whatever_the_facts_are(reason: Reason) -> None:
    assert isinstance(wording.render(**json.loads(json.dumps(reason.as_json()))), str)


@pytest.mark.parametrize("at", [10**25, 10**29, -62_135_596_800_000_001])
def test_a_time_that_no_calendar_has_is_told_as_it_is_stored(at: int) -> None:
    assert moment(at) == f"{at} µs UTC"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["code", "facts"]), inner),
)


@given(st.sampled_from([*Reason.known, "a_later_code"]), st.data())
def test_rendering_never_raises_for_facts_of_another_version(code: str, data: st.DataObject) -> None:
    names = list(getattr(Reason.known.get(code), "__dataclass_fields__", {})) or ["any"]
    facts: dict[str, Any] = data.draw(st.dictionaries(st.sampled_from(names), JSON))
    assert isinstance(wording.render(code, facts), str)


def test_an_unknown_code_is_shown_in_words_also_within_another_reason() -> None:
    assert wording.render("machine_on_fire", {"slot": 3}) == "Machine on fire."
    assert wording.render("waiting", {"waits_for": "slots", "detail": {"code": "machine_on_fire", "facts": {}}}) == (
        "Waiting for machines. Machine on fire."
    )


def test_two_reasons_never_share_a_code() -> None:
    with pytest.raises(TypeError, match="submitted"):

        class _Submitted(Reason):
            code = "submitted"

            def text(self) -> str:
                return ""


def test_an_error_of_a_decision_takes_sentence_hint_and_facts_from_its_reason() -> None:
    error = BudgetExceeded(budget.CostLimitTooLow("0.01", "0.02"))
    assert (error.message, error.hint) == (
        "limits.cost is $0.01, but its first machines need $0.02.",
        "Raise limits.cost, or use fewer machines.",
    )
    assert error.fields == {"reason": "cost_limit_too_low", "limit": "0.01", "need": "0.02"}
    assert InvalidState(jobs.CannotPause("ended")).hint is None


def test_one_batch_and_several_are_named() -> None:
    assert batches_of_steps([(12, 12)]) == "the batch of step 12"
    assert batches_of_steps([(12, 12), (30, 33)]) == "the batches of steps 12, 30 to 33"


def test_money_in_sentences_is_rounded_to_a_cent_or_two_digits_and_a_shortage_never_reads_as_none() -> None:
    assert [dollars(amount) for amount in ("60.00", "1.234567", "0.041234", "0.000007", "0.00")] == [
        "$60.00", "$1.23", "$0.041", "$0.000007", "$0.00",
    ]  # fmt: skip
    assert shortage("1.234568", "1.234567") == ("$1.24", "$1.23")
    promised = deadlines.DeadlinePromised(AT, "2.107334", "7.892666", "team vision", 3_600_000_000, 3)
    assert "$2.11 is reserved" in promised.text()
    assert "team vision has $7.89 left" in promised.text()
    unaffordable = deadlines.DeadlineUnaffordable("team vision", "2.107334", "2.104999", own_limit=False)
    assert "could cost $2.11, on-demand from now on, and team vision has $2.10 left" in unaffordable.text()


_AMOUNT = re.compile(r"\d+\.\d{2,6}")
_PRICES = re.compile(r"\$14\.919886(?= (per|an) | to \$)|at \$14\.919886|limits\.rate (is|of) \$14\.919886")
"""Prices keep the digits of their lists."""


@pytest.mark.parametrize("reason", EXAMPLES, ids=lambda reason: reason.code)
def test_no_sentence_has_more_digits_of_an_amount_than_people_read(reason: Reason) -> None:
    facts = {name: _long(value) for name, value in json.loads(json.dumps(reason.facts)).items()}
    said = _PRICES.sub("", wording.render(reason.code, facts))
    assert "$14.919886" not in said


def _long(value: Any) -> Any:
    """An amount with all digits in place of any amount."""
    return "14.919886" if isinstance(value, str) and _AMOUNT.fullmatch(value) else value


@pytest.mark.parametrize("reason", [EndReason, WaitReason])
def test_each_state_of_a_job_is_worded(reason: type[EndReason] | type[WaitReason]) -> None:
    for one in reason:
        if one is WaitReason.RESUME:  # only a paused job waits for it
            continue
        status = jobs.Ended(one, None, ()) if isinstance(one, EndReason) else jobs.Waiting(one, None)
        assert wording.sentence(status) not in ("Waiting to start.", "")
        assert wording.sentence(status).endswith(".")


OLD_TERMS = (
    "went on from a checkpoint", "lost work", "done again", "none done twice", "what it takes is kept",
    "machines don't share", "why no faster", "with a margin of", "left when done", "taken by the provider",
    "gets notice", "as one gang", "the spec this writes", "it would be accepted", "the recipe's own value",
    "fresh weights", "start another from this", "somebody asked for it", "look on until", "its money ran out",
    "waiting for money", "getting ready to train", "where its numbers broke", "passes over", "so many pictures",
    "money and other routine", "same time on demand", "too few readable",
)  # fmt: skip


def test_nobody_reads_a_term_that_the_field_has_another_for() -> None:
    root = Path(__file__).parents[2]
    read = {
        "web/src": "*.ts*", "core/shoestring_core/wording": "*.py", "core/shoestring_core/recipes": "*.yaml",
        "client/shoestring": "*.py", "docs": "*.md",
    }  # fmt: skip
    pages = [root / "README.md", *(path for folder, names in read.items() for path in (root / folder).rglob(names))]
    assert len(pages) > 100
    found = [
        (path.name, term) for path in pages if (text := path.read_text().lower()) for term in OLD_TERMS if term in text
    ]
    assert not found
