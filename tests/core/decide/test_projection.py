# SPDX-License-Identifier: Apache-2.0
"""The schedule on a virtual clock, from values alone."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from shoestring_core.decide.offers import Hardware, Offer
from shoestring_core.decide.outlook import changed_fields, outlook
from shoestring_core.decide.projection import (
    MAX_ROUNDS,
    SETTLING,
    CurrentRun,
    Expectation,
    Projection,
    find_alternative,
    project,
)
from shoestring_core.decide.queue import QueuedJob, QueueSnapshot, RunningJob
from shoestring_core.decide.refusals import RecentRefusal, RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.timeouts import S

from tests.core.decide.test_schedule import NOW, ORG, TEAM_A, TEAM_B, TIMEOUTS, offers, queued, snapshot

HOUR, DOLLAR = 3600 * S, 1_000_000
LOCAL = ("local", "local", "cpu", "spot")


def hour(_: UUID, offer: Offer, nodes: int) -> Expectation | None:
    return Expectation(HOUR, round(nodes * float(offer.price) * DOLLAR))


def run(number: int, ends_at: int | None, nodes: int = 1, held: int = 0, cost: int = 0) -> CurrentRun:
    path = (UUID(int=300 + number), TEAM_A, ORG)
    return CurrentRun(UUID(int=400 + number), path, LOCAL, nodes, NOW, ends_at, held, cost)


def of(snap: QueueSnapshot, *runs: CurrentRun, slots: int | None = 4, expect=hour) -> Projection:
    return project(snap, runs, offers(slots), NOW, TIMEOUTS, expect)


def starts(projection: Projection) -> dict[int, int]:
    """Hours from now, by job."""
    return {job.int - 100: round((start.at - NOW) / HOUR, 3) for job, start in projection.starts.items()}


def test_jobs_start_as_machines_become_free_in_the_order_of_service():
    snap = snapshot(*(queued(number, queued_at=number) for number in range(1, 5)), machines_in_use=2)
    found = of(snap, run(1, NOW + HOUR // 2), run(2, NOW + 2 * HOUR), slots=2)
    assert starts(found) == {1: 0.5, 2: 1.5, 3: 2.0, 4: 2.5}
    assert [job.int - 100 for job in found.order] == [1, 2, 3, 4]
    assert found.whole
    assert {one.int - 100 for one in found.waits} == {1, 2, 3, 4}


def test_what_starts_now_is_what_the_scheduler_starts():
    snap = snapshot(queued(1, 2), queued(2, 3), queued(3), machines_in_use=1)
    decided = schedule_jobs(snap, offers(), NOW, TIMEOUTS)
    found = of(snap, run(1, None))
    assert {job for job, start in found.starts.items() if start.at == NOW} == {one.job for one in decided.starts}
    assert list(found.waits) == [one.job for one in decided.waits]


def test_a_job_whose_end_is_unknown_keeps_its_machines_and_what_waits_for_it_has_no_start():
    snap = snapshot(queued(1), queued(2), machines_in_use=1)
    found = of(snap, run(1, None), slots=1)
    assert (starts(found), found.whole) == ({}, False)
    found = of(snap, run(1, NOW + HOUR), slots=1, expect=lambda *_: None)
    assert (starts(found), found.whole) == ({1: 1.0}, False)  # how long it takes is unknown, so the next one's start is
    assert found.starts[UUID(int=101)].ends_at is None


def test_machines_of_no_job_are_gone_soon():
    snap = snapshot(queued(1), machines_in_use=1)
    (start,) = of(snap, slots=1).starts.values()
    assert start.at == NOW + SETTLING
    ending = snapshot(queued(1, terminating_machines=1), machines_in_use=1)
    (start,) = of(ending, slots=1).starts.values()
    assert start.at == NOW + SETTLING


def test_a_backoff_and_a_refusal_end_on_the_clock():
    (start,) = of(snapshot(queued(1, not_before=NOW + HOUR))).starts.values()
    assert start.at == NOW + HOUR
    refused = tuple(
        RecentRefusal("local", "local", "", "cpu", market, RefusalKind.QUOTA, NOW) for market in ("spot", "on_demand")
    )
    (start,) = of(replace(snapshot(queued(1)), refusals=refused)).starts.values()
    assert start.at == NOW + RefusalKind.QUOTA.memory


def test_an_end_frees_what_was_held_and_spends_what_it_cost():
    snap = snapshot(queued(1), limits={TEAM_A: DOLLAR}, machines_in_use=1)
    team = replace(snap.balances[TEAM_A], held=DOLLAR - 1)
    snap = replace(snap, balances=snap.balances | {TEAM_A: team})
    cheap = of(snap, run(1, NOW + HOUR, held=DOLLAR - 1, cost=100_000))
    assert starts(cheap) == {1: 1.0}
    assert [point.spent[TEAM_A] for point in cheap.points] == [0, 833, 100_000, 258_000]
    dear = of(snap, run(1, NOW + HOUR, held=DOLLAR - 1, cost=DOLLAR - 1))
    assert (starts(dear), dear.whole) == ({}, True)  # no end of a job brings the money


def test_the_team_that_used_less_goes_first_when_machines_become_free():
    snap = snapshot(queued(1, queued_at=1), queued(2, team=TEAM_B, queued_at=2), machines_in_use=1)
    used = replace(snap.balances[TEAM_A], recent=DOLLAR)
    snap = replace(snap, balances=snap.balances | {TEAM_A: used})
    found = of(snap, run(1, NOW + HOUR), slots=1)
    assert [job.int - 100 for job in found.order] == [2, 1]
    assert starts(found) == {2: 1.0, 1: 2.0}


def test_room_is_made_for_a_guaranteed_rate_soon():
    snap = snapshot(queued(1, team=TEAM_B), machines_in_use=1)
    lender = replace(snap.balances[TEAM_A], rate=DOLLAR)
    guaranteed = replace(snap.balances[TEAM_B], guaranteed_rate=DOLLAR)
    long = RunningJob(UUID(int=401), 1, TEAM_A, "local", ((LOCAL, 1),), DOLLAR, NOW - HOUR)
    balances = snap.balances | {TEAM_A: lender, TEAM_B: guaranteed}
    found = of(replace(snap, balances=balances, running=(long,)), run(1, NOW + 9 * HOUR), slots=1)
    assert found.starts[UUID(int=101)].at == NOW + SETTLING
    unguaranteed = replace(snap, balances=balances | {TEAM_B: snap.balances[TEAM_B]}, running=(long,))
    assert starts(of(unguaranteed, run(1, NOW + 9 * HOUR), slots=1)) == {1: 9.0}


def test_the_clock_stops_after_so_many_rounds():
    snap = snapshot(*(queued(number, queued_at=number) for number in range(1, MAX_ROUNDS + 40)))
    found = of(snap, slots=1)
    assert not found.whole
    assert MAX_ROUNDS - 1 <= len(found.starts) <= MAX_ROUNDS + 1


A10G, L4 = (Hardware(4, 16_384, name, 1, 24_576) for name in ("A10G", "L4"))


def gpu(type_: str, price: str, market: str, slots: int | None, provider: str = "sim", **fields) -> Offer:
    hardware = fields.pop("hardware", A10G)
    return Offer(provider, "east", "a", type_, market, price, "2.00", slots, "test", False, hardware, **fields)


def test_a_waiting_job_is_told_for_how_much_more_it_would_start_now():
    market = [
        Offer("local", "local", "", "g6", "spot", "0.40", "0.80", 1, "test", False, L4),
        gpu("g5", "0.71", "spot", 4),
        Offer("local", "local", "", "cpu", "on_demand", "0.01", "0.01", None, "test", False),
    ]
    job = replace(queued(1), requirements=Requirements(1, "local", spot="only", type="g6"))
    snap = snapshot(job, machines_in_use=1)
    runs = [replace(run(1, NOW + 2 * HOUR), product=("local", "local", "g6", "spot"))]
    projection = project(snap, runs, market, NOW, TIMEOUTS, hour)
    alternative = find_alternative(snap, job, market, NOW, TIMEOUTS)
    assert alternative
    assert alternative.type == "g5"  # no machine without a GPU stands in, however cheap
    said = outlook(job, projection, market[0], alternative, NOW, hour).text()
    fields = "resources.provider=sim resources.instance=g5"
    assert said == (
        f"Starts now on 1 × g5 (A10G, spot) for $0.31 more if submitted with {fields}, or about 10:00 UTC on 1 × g6 "
        "(L4, spot), for about $0.40."
    )
    unmeasured = outlook(job, projection, market[0], alternative, NOW, lambda *_: None).text()
    assert "for $0.31 an hour more" in unmeasured
    unknown = project(snap, [replace(runs[0], ends_at=None)], market, NOW, TIMEOUTS, hour)
    said = outlook(job, unknown, market[0], alternative, NOW, hour).text()
    assert said.endswith(
        f"{fields}. As it is, its start can't be predicted: no earlier run says how long the jobs ahead of it take."
    )


def test_a_job_that_no_other_offer_would_start_has_no_alternative():
    full = snapshot(queued(1), machines_in_use=4)
    assert find_alternative(full, full.queue[0], offers(), NOW, TIMEOUTS) is None
    poor = snapshot(queued(1), limits={TEAM_A: 1})
    assert find_alternative(poor, poor.queue[0], [*offers(), gpu("g5", "0.1", "spot", 4)], NOW, TIMEOUTS) is None


def test_the_fields_that_a_spec_would_have_to_change_are_named():
    offer = gpu("g5", "1", "on_demand", 4)
    narrow = Requirements(1, "local", ("west",), ("c",), "only", "g6")
    assert changed_fields(narrow, offer) == (
        "resources.provider=sim", "resources.regions=[east]", "resources.zones=[a]", "resources.instance=g5",
        "resources.spot=prefer",
    )  # fmt: skip
    assert changed_fields(Requirements(), offer) == ()
    assert changed_fields(replace(narrow, spot="never"), replace(offer, market="spot"))[-1] == "resources.spot=prefer"


def test_a_job_that_nothing_holds_up_but_the_unknown_says_so():
    snap = snapshot(queued(1), machines_in_use=1)
    job: QueuedJob = snap.queue[0]
    assert "no earlier run says" in outlook(job, of(snap, run(1, None), slots=1), None, None, NOW, hour).text()
    poor = snapshot(queued(1), limits={TEAM_A: 1})
    assert "No running job's end lets it start" in outlook(job, of(poor), None, None, NOW, hour).text()
    assert outlook(job, of(snapshot(queued(1))), None, None, NOW, hour).text().startswith("Now on 1 × cpu (spot)")
