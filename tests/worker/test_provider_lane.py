# SPDX-License-Identifier: Apache-2.0
"""One provider's part of a tick: polled by one call at a time, its offers stored as they change."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.timeouts import S
from shoestring_core.store.fleet.offers import load_offers, load_timeouts
from shoestring_worker.provider_lane import POLL_INTERVAL_S, ProviderLane, wait_for_answers
from shoestring_worker.providers.base import ManagedProvider, OutcomeUnknown
from shoestring_worker.steps import ItemRunner

from tests.servers import PATIENCE_S
from tests.worker.conftest import World


class Lane:
    """Of the world's provider. `asked`: how often it was asked for its offers, which wait for `answers`."""

    def __init__(self, world: World) -> None:
        self.world, self.answers, self.asked, self.handed_over = world, Event(), 0, list[UUID]()
        self.answers.set()
        self.failure: OutcomeUnknown | None = None
        self.offers = world.provider.offers
        world.provider.offers = self._offers
        managed = ManagedProvider(world.provider, world.timeouts)
        now = lambda: world.clock.now / S  # noqa: E731
        self.lane = ProviderLane(
            "sim", managed, world.store, "d", "secret", ItemRunner(now), self.handed_over.append, now, PATIENCE_S
        )

    def _offers(self, requirements: Collection[Any]) -> list[Offer]:
        self.asked += 1
        assert self.answers.wait(PATIENCE_S)
        if self.failure:
            raise self.failure
        return self.offers(requirements)

    def poll(self) -> None:
        wait_for_answers(self.lane.begin_poll((), self.world.clock.now), PATIENCE_S)

    def stored(self) -> tuple[str, int]:
        """The cheapest price, and how long ago the provider said so (µs)."""
        with self.world.store.read() as db:
            cheapest = min(load_offers(db), key=lambda offer: offer.price)
        assert cheapest.fetched_at is not None
        return cheapest.price, self.world.clock.now - cheapest.fetched_at


@pytest.fixture
def lane(world: World) -> Iterator[Lane]:
    made = Lane(world)
    yield made
    made.answers.set()
    made.lane.close()


def test_a_provider_is_polled_by_one_call_at_a_time(lane: Lane, caplog: pytest.LogCaptureFixture):
    lane.answers.clear()
    (waiting,) = lane.lane.begin_poll((), lane.world.clock.now)
    assert lane.lane.begin_poll((), lane.world.clock.now) == []
    assert "it has not answered the calls of an earlier tick yet" in caplog.text
    lane.answers.set()
    wait_for_answers([waiting], PATIENCE_S)
    assert lane.asked == 1
    lane.poll()
    assert lane.asked == 2


def test_a_slow_provider_is_not_waited_for_and_its_launches_are_left_to_the_next_tick(lane: Lane):
    lane.poll()
    lane.lane._offload_launch(UUID(int=1))
    lane.lane.answer_wait_s = 0  # no answer is in time
    lane.poll()
    lane.lane._offload_launch(UUID(int=2))
    assert lane.handed_over == [UUID(int=1)]
    assert lane.lane.begin_poll((), lane.world.clock.now) == []
    assert lane.lane.begin_launches([UUID(int=3)]) == []


def test_a_provider_is_known_before_it_has_answered(lane: Lane, world: World):
    lane.failure = OutcomeUnknown("late")
    for _ in range(2):
        lane.poll()
    with world.store.read() as db:
        assert (load_timeouts(db), load_offers(db)) == ({"sim": world.timeouts}, [])
    lane.failure = None
    lane.poll()
    assert lane.stored() == ("0.158", 0)


def test_a_problem_that_lasts_is_kept_as_it_was_first_told_until_the_provider_answers(lane: Lane):
    """A silence that passes by itself says nothing about it, and the provider's words may change each time."""
    said = []
    for failure in (OutcomeUnknown("late"), *(OutcomeUnknown(f"at {n}: set the clock", lasts=True) for n in (1, 2)),
                    OutcomeUnknown("late"), None):  # fmt: skip
        lane.failure = failure
        lane.poll()
        said.append(lane.lane.problem)
    assert said == ["", *["at 1: set the clock"] * 3, ""]


def test_offers_are_stored_when_they_change_and_every_ten_seconds(lane: Lane, world: World):
    lane.poll()
    for seconds, ago_s in ((1, 1), (POLL_INTERVAL_S - 2, POLL_INTERVAL_S - 1), (1, 0)):
        world.clock.pass_(seconds)
        lane.poll()
        assert lane.stored() == ("0.158", ago_s * S)
    world.clock.pass_(1)
    world.provider.price = "0.100"
    lane.poll()
    assert lane.stored() == ("0.100", 0)
