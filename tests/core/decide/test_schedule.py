# SPDX-License-Identifier: Apache-2.0
"""Which jobs start and which wait, decided from values alone."""

from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

import pytest
from shoestring_core import money
from shoestring_core.decide.funding import Storage
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import MAX_OFFER_AGE
from shoestring_core.decide.queue import AccountBalance, QueuedJob, QueueSnapshot, RunningJob
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.start import Start, StartInputs, Wait, find_shortage
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.spec.gpus import GpuChoice
from shoestring_core.wording import waits

from tests.core.decide.recompute import recompute_start

NOW = 1_800_000_000 * S
TIMEOUTS = {"local": Timeouts(funding_lease=60 * S), "sim": Timeouts(funding_lease=60 * S, drain=45 * S)}
HOLD = money.cost_ceiling("0.526", 75 * S)  # one machine: 60 s funded and 15 s to end, at the on-demand price
ORG, TEAM_A, TEAM_B = UUID(int=1), UUID(int=2), UUID(int=3)


def offers(slots: int | None = 4) -> list[Offer]:
    return [
        Offer("local", "local", "", "cpu", "on_demand", "0.526", "0.526", slots, "test", True),
        Offer("local", "local", "", "cpu", "spot", "0.158", "0.526", slots, "test", True),
    ]


def queued(number: int, nodes: int = 1, team: UUID = TEAM_A, provider: str | None = None, **fields) -> QueuedJob:
    needed = Requirements(nodes, provider)
    return QueuedJob(UUID(int=100 + number), needed, (UUID(int=200 + number), team, ORG), 1, **fields)


def snapshot(
    *queue: QueuedJob, limits: dict[UUID, int] | None = None, machines_in_use: int = 0, overdraft: UUID | None = None
):
    return QueueSnapshot(7, queue, balances_of(*queue, limits=limits, overdraft=overdraft), {"local": machines_in_use})


def balances_of(
    *queue: QueuedJob, limits: dict[UUID, int] | None = None, overdraft: UUID | None = None
) -> dict[UUID, AccountBalance]:
    ids = {ORG, TEAM_A, TEAM_B} | {account for job in queue for account in job.account_path}
    return {
        one: AccountBalance(one, f"account {one.int}", (limits or {}).get(one), 0, 0, int(one == overdraft))
        for one in ids
    }


def decide(snap: QueueSnapshot, slots: int | None = 4, now: int = NOW) -> dict[int, Start | Wait]:
    decided = schedule_jobs(snap, offers(slots), now, TIMEOUTS)
    return {one.job.int - 100: one for one in [*decided.starts, *decided.waits]}


def test_the_initial_hold_covers_funding_lease_and_drain_at_the_on_demand_price():
    (start,) = schedule_jobs(snapshot(queued(1, nodes=2)), offers(), NOW, TIMEOUTS).starts
    assert (start.hold, start.funded_until) == (HOLD, NOW + 60 * S)
    assert start.offer.market == "spot"


def sim(slots: int | None = 4, price: str = "0.100") -> Offer:
    return Offer("sim", "sim", "", "sim", "spot", price, "0.526", slots, "test", True)


def test_a_job_without_a_provider_starts_on_the_cheapest_offer_with_free_slots():
    both = [*offers(4), sim(2)]
    decided = schedule_jobs(snapshot(queued(1, 2), queued(2, 2), queued(3, 2), queued(4, 2)), both, NOW, TIMEOUTS)
    assert [start.offer.provider for start in decided.starts] == ["sim", "local", "local"]
    assert [wait.reason for wait in decided.waits] == ["slots"]


def test_a_hold_follows_the_timeouts_of_the_provider():
    (start,) = schedule_jobs(snapshot(queued(1)), [*offers(), sim()], NOW, TIMEOUTS).starts
    assert (start.offer.provider, start.hold) == ("sim", money.cost_ceiling("0.526", 105 * S))


def test_a_job_that_waits_for_one_provider_holds_up_no_job_of_another():
    queue = queued(1, 4, provider="local"), queued(2, 1, provider="local"), queued(3, 1, provider="sim"), queued(4, 1)
    decided = schedule_jobs(snapshot(*queue, machines_in_use=1), [*offers(), sim(price="9")], NOW, TIMEOUTS)
    assert [(start.job.int - 100, start.offer.provider) for start in decided.starts] == [(3, "sim"), (4, "sim")]
    assert [wait.reason for wait in decided.waits] == ["slots", "slots"]


def test_a_job_that_waits_for_any_provider_is_overtaken_on_none():
    decided = schedule_jobs(
        snapshot(queued(1, 4), queued(2, 1, provider="sim"), queued(3), machines_in_use=1),
        [*offers(), sim(3)],
        NOW,
        TIMEOUTS,
    )
    # Only one of the two ever has four machines, so the job waits for that one alone.
    assert [(start.job.int - 100, start.offer.provider) for start in decided.starts] == [(2, "sim"), (3, "sim")]
    decided = schedule_jobs(
        snapshot(queued(1, 3), queued(2, 1, provider="sim"), machines_in_use=2), [*offers(), sim(3)], NOW, TIMEOUTS
    )
    assert [start.job.int - 100 for start in decided.starts] == [1]
    both = (queued(1, 3), queued(2, 1, provider="sim"))
    busy = QueueSnapshot(7, both, balances_of(*both), {"local": 2, "sim": 1})
    assert schedule_jobs(busy, [*offers(), sim(3)], NOW, TIMEOUTS).starts == ()


def test_no_job_starts_at_a_provider_that_has_not_answered_for_long():
    old = replace(sim(), fetched_at=NOW - MAX_OFFER_AGE - 1)
    decided = schedule_jobs(snapshot(queued(1), queued(2, provider="sim")), [*offers(), old], NOW, TIMEOUTS)
    assert [start.offer.provider for start in decided.starts] == ["local"]
    assert [wait.detail for wait in decided.waits] == [waits.ProviderUnanswered("sim")]
    fresh = replace(old, fetched_at=NOW - MAX_OFFER_AGE)
    assert len(schedule_jobs(snapshot(queued(1, provider="sim")), [fresh], NOW, TIMEOUTS).starts) == 1


def test_a_job_is_told_why_a_provider_that_might_suit_it_cannot_be_asked():
    silent, unanswered = replace(sim(), fetched_at=NOW - MAX_OFFER_AGE - 1), {"sim": "Set the clock."}
    needs_gpu = replace(queued(2), requirements=Requirements(gpus=(GpuChoice("A10G"),)))

    def wait(job: QueuedJob, known: list[Offer]) -> waits.WaitDetail:
        (one,) = schedule_jobs(
            snapshot(job), known, NOW, TIMEOUTS, unanswered=unanswered, answered_at={"far": NOW - 7}
        ).waits
        return one.detail

    told = waits.ProviderUnanswered("sim", "Set the clock.")
    assert wait(queued(1, provider="sim"), [silent]) == told
    assert wait(queued(1, provider="sim"), []) == replace(told, yet=True)
    assert wait(needs_gpu, offers()) == replace(told, yet=True)
    assert wait(queued(1, provider="far"), offers()) == waits.ProviderUnserved("far", NOW - 7), "it was removed"
    assert isinstance(wait(needs_gpu, [sim()]), waits.NoOffer)
    unanswered["sim"] = ""
    assert wait(queued(1, provider="sim"), []) == waits.ProviderUnanswered("sim", yet=True), "it is being asked"
    del unanswered["sim"]
    assert isinstance(wait(queued(1, provider="sim"), []), waits.NoOffer), "it has said that it offers nothing"


def test_jobs_start_in_order_while_there_are_slots():
    decided = decide(snapshot(queued(1, 2), queued(2, 2), queued(3, 1)))
    assert isinstance(decided[1], Start)
    assert isinstance(decided[2], Start)
    assert decided[3].reason == "slots"
    assert decided[3].detail == waits.MachinesInUse(nodes=1, free=0, slots=4, behind=False)


def test_no_job_overtakes_one_that_waits_for_slots():
    decided = decide(snapshot(queued(1, 3), queued(2, 1), machines_in_use=2))
    assert (decided[1].reason, decided[2].reason) == ("slots", "slots")
    assert decided[2].detail.behind


def test_a_job_that_can_never_fit_says_so_and_blocks_nobody():
    decided = decide(snapshot(queued(1, 9), queued(2, 1)))
    assert decided[1].reason == "capacity"
    assert decided[1].detail == waits.TooFewSlots(nodes=9, provider="local", slots=4)
    assert isinstance(decided[2], Start)


def test_of_two_jobs_with_budget_for_one_the_second_waits():
    decided = decide(snapshot(queued(1), queued(2), limits={TEAM_A: HOLD + 1}))
    assert isinstance(decided[1], Start)
    assert decided[2].reason == "budget"
    need, missing = money.to_decimal(HOLD), money.to_decimal(HOLD - 1)
    assert decided[2].detail == waits.BudgetShort("account 2", need, missing, nodes=1, held_suffices=True)


@pytest.mark.parametrize(("spent", "held", "waiting_helps"), [(0, 3, True), (1, 2, True), (2, 1, False), (3, 0, False)])
def test_a_job_short_of_budget_is_told_to_wait_only_where_running_jobs_hold_what_it_lacks(
    spent: int, held: int, waiting_helps: bool
):
    """Of a limit of four dollars, of which the job needs three."""
    dollar = 1_000_000
    own = AccountBalance(UUID(int=201), "this job", None, 0, 0, 0)
    team = AccountBalance(TEAM_A, "team vision", 4 * dollar, spent * dollar, held * dollar, 0)
    found = find_shortage([own, team], 3 * dollar, nodes=1)
    assert found is not None
    assert ("Wait for running jobs to end, ask for more" in found[1].text()) is waiting_helps
    assert "sk for more with `shoestring budget request`" in found[1].text()


def test_a_job_that_waits_for_budget_is_overtaken_only_by_jobs_of_other_accounts():
    limits = {TEAM_A: HOLD}
    decided = decide(snapshot(queued(1, 2), queued(2, 1), queued(3, 1, TEAM_B), limits=limits))
    assert decided[1].reason == "budget"
    assert decided[2].reason == "turn"
    assert decided[2].detail == waits.BehindJobShortOfBudget("account 2")
    assert isinstance(decided[3], Start)


def test_what_a_job_waits_for_names_no_job_of_another_team_and_not_how_many_wait():
    theirs = [queued(number, 2, TEAM_B) for number in range(1, 38)]
    for limits, machines_in_use in (({}, 3), ({ORG: HOLD}, 0)):
        decided = decide(snapshot(*theirs, queued(90, 2), limits=limits, machines_in_use=machines_in_use))
        told = json.dumps(decided[90].detail.as_json()) + decided[90].detail.text()
        assert not [job for job in theirs if str(job.job) in told or str(job.job)[:8] in told]
        assert "37" not in told


def test_a_job_that_lacks_free_machines_waits_for_those_whatever_lacks_budget_before_it():
    queue = queued(1, 2), queued(2, 1)
    decided = decide(snapshot(*queue, limits={TEAM_A: HOLD}, machines_in_use=4))
    assert (decided[1].reason, decided[2].reason) == ("budget", "slots")


def test_a_parent_account_that_is_short_blocks_all_its_jobs():
    decided = decide(snapshot(queued(1, 2), queued(2, 1, TEAM_B), limits={ORG: HOLD}))
    assert (decided[1].reason, decided[2].reason) == ("budget", "turn")


def test_a_job_short_of_its_own_limit_blocks_nobody():
    decided = decide(snapshot(queued(1), queued(2), limits={UUID(int=201): 1}))
    assert decided[1].reason == "budget"
    assert decided[1].detail.own
    assert isinstance(decided[2], Start)


def test_nothing_starts_from_an_overdrawn_account():
    decided = decide(snapshot(queued(1), overdraft=ORG))
    assert decided[1].reason == "budget"
    assert decided[1].detail == waits.BudgetOverdrawn("account 1", "0.000001")


def test_a_job_keeps_its_place_while_its_earlier_machines_terminate():
    decided = decide(snapshot(queued(1, terminating_machines=1), queued(2)), slots=1)
    assert decided[1].reason == "terminating"
    assert decided[2].reason == "slots"


def test_a_job_whose_attempt_is_not_closed_yet_blocks_nobody_once_its_machines_have_terminated():
    decided = decide(snapshot(queued(1, closing=True), queued(2)), slots=1)
    assert decided[1].reason == "terminating"
    assert isinstance(decided[2], Start)


def test_a_job_in_backoff_blocks_nobody():
    snap = snapshot(queued(1, not_before=NOW + S), queued(2))
    assert decide(snap)[1].detail == waits.RetryDelayed()
    assert isinstance(decide(snap)[2], Start)
    assert isinstance(decide(snap, now=NOW + S)[1], Start)


def test_a_backoff_after_a_refusal_changes_the_order_of_no_jobs_that_need_the_same_machines():
    """A delay is a job's own, and has jitter: without this the job whose delay ends first would get what is free."""
    first, second = (queued(number, not_before=NOW + until * S, refused=True) for number, until in ((1, 9), (2, 1)))
    behind = snapshot(first, second, queued(3), queued(4, nodes=2))
    for now in (NOW, NOW + 8 * S):
        decided = decide(behind, now=now)
        assert [decided[job].reason for job in (1, 2, 3)] == ["capacity"] * 3
        assert decided[3].detail == waits.BehindRefusedJob()
        assert isinstance(decided[4], Start)
    assert all(isinstance(one, Start) for one in decide(behind, 5, NOW + 9 * S).values())


def test_every_start_can_be_recomputed_from_its_stored_inputs():
    snap = snapshot(queued(1, 2), queued(2, 1, TEAM_B), queued(3, 1), limits={ORG: 5 * HOLD, TEAM_A: 4 * HOLD})
    starts = schedule_jobs(snap, offers(), NOW, TIMEOUTS).starts
    assert [start.job.int - 100 for start in starts] == [1, 2, 3]
    for start in starts:
        stored = json.loads(json.dumps(start.inputs.as_json()))
        assert recompute_start(StartInputs.from_json(stored)) == start


def test_a_machine_is_funded_no_longer_than_what_it_does_can_be_stored():
    for storable, funded in ((None, 60), (75, 60), (50, 35)):  # it may take 15 s to end
        storage = Storage(None if storable is None else NOW + storable * S)
        (start,) = schedule_jobs(snapshot(queued(1)), offers(), NOW, TIMEOUTS, storage).starts
        assert start.funded_until == NOW + funded * S
        assert recompute_start(StartInputs.from_json(json.loads(json.dumps(start.inputs.as_json())))) == start
    for storage in (Storage(NOW + 15 * S), Storage(problem="The credentials are refused.")):
        (wait,) = schedule_jobs(snapshot(queued(1)), offers(), NOW, TIMEOUTS, storage).waits
        assert wait.detail == waits.NothingStorable(storage.problem)


def test_a_schedule_never_holds_more_than_a_limit_nor_launches_more_than_the_slots():
    queue = [queued(number, 1 + number % 3, TEAM_A if number % 2 else TEAM_B) for number in range(1, 40)]
    started = set()
    for limit in range(0, 12 * HOLD, HOLD // 2):
        for taken in range(5):
            decided = schedule_jobs(
                snapshot(*queue, limits={ORG: limit, TEAM_A: limit // 2}, machines_in_use=taken),
                offers(),
                NOW,
                TIMEOUTS,
            )
            assert sum(start.hold * start.nodes for start in decided.starts) <= limit
            assert sum(start.nodes for start in decided.starts) <= 4 - taken
            assert len(decided.starts) + len(decided.waits) == len(queue)
            started.add(sum(start.nodes for start in decided.starts))
    assert started == {0, 2, 3}


# Gaps that a gang leaves while it waits


MINUTE, STARTING = 60 * S, TIMEOUTS["local"].boot + TIMEOUTS["local"].launch_window + TIMEOUTS["local"].forming
LONGEST = 60 * MINUTE - STARTING - TIMEOUTS["local"].drain
"""The time limit of a job that is over within an hour, with its start and its end."""


def running(number: int, slots: int, ends_by: int | None) -> RunningJob:
    machines = ((("local", "local", "cpu", "spot"), slots),)
    return RunningJob(UUID(int=900 + number), 1, TEAM_A, "local", machines, 1, NOW, ends_by)


def beside_a_gang(job: QueuedJob, *others: RunningJob) -> Start | Wait:
    """The decision about a job behind one that waits for three machines of four, of which three are in use."""
    snap = replace(snapshot(queued(1, 3), job, machines_in_use=3), running=others)
    decided = decide(snap)
    assert decided[1].reason == "slots"
    return decided[2]


def test_a_job_fills_a_gap_if_its_time_limit_ends_it_before_the_gang_can_have_the_machines():
    hour = running(1, 3, NOW + 60 * MINUTE)
    start = beside_a_gang(queued(2, time_limit=LONGEST), hour)
    assert isinstance(start, Start)
    assert recompute_start(StartInputs.from_json(json.loads(json.dumps(start.inputs.as_json())))) == start
    for too_long in (LONGEST + 1, None):
        assert isinstance(beside_a_gang(queued(2, time_limit=too_long), hour), Wait)
    assert isinstance(beside_a_gang(queued(2, 2, time_limit=LONGEST), hour), Wait), "one machine is free"


def test_no_gap_is_filled_while_nobody_knows_when_the_gang_can_start():
    short = queued(2, time_limit=MINUTE)
    for others in ((), (running(1, 3, None),), (running(1, 1, NOW + 60 * MINUTE), running(2, 2, None))):
        assert isinstance(beside_a_gang(short, *others), Wait)
    earlier = running(1, 1, NOW + 5 * MINUTE), running(2, 2, NOW + 10 * MINUTE)
    assert isinstance(beside_a_gang(replace(short, time_limit=5 * MINUTE), *earlier), Start)
    assert isinstance(beside_a_gang(replace(short, time_limit=8 * MINUTE), *earlier), Wait)


def test_a_gang_that_waits_for_machines_that_are_about_to_be_free_has_no_gap_filled():
    assert isinstance(beside_a_gang(queued(2, time_limit=MINUTE), running(1, 1, NOW + 60 * MINUTE)), Wait)
