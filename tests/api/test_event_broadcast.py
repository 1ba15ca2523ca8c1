# SPDX-License-Identifier: Apache-2.0
"""What the viewers of a team share in memory is bounded, and nobody misses anything for it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools

import pytest
from shoestring_api import event_broadcast
from shoestring_api.change_notifier import ChangeNotifier
from shoestring_api.event_broadcast import EventBroadcaster, StreamPosition, StreamReader
from shoestring_core.store import events as feed
from shoestring_core.store import identity

from tests.api.deployment import Deployment

pytestmark = pytest.mark.any_database


@pytest.mark.parametrize(("limit", "value"), [("MAX_CACHED_GROUPS", 3), ("MAX_CACHED_BYTES", 7_000)])
def test_messages_that_every_viewer_has_seen_are_dropped_and_read_again_for_one_that_is_far_back(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(event_broadcast, limit, value)
    job, (agent,) = deployment.running()
    cursor = deployment.member.get(f"/v1/jobs/{job}/metrics").json()["cursor"]
    with deployment.stream(f"job:{job}") as stream:
        live = (step for one in stream if one.name == "points" for step in one.data["curves"][0]["steps"])
        for step in range(1, 21):
            agent.points(range(step, step + 1))
            assert next(live) == step
        gc.collect()
        groups = (one for one in gc.get_objects() if isinstance(one, event_broadcast.MessageGroup))
        cached = [group for group in groups if group.messages]
        assert 2 <= len(cached) <= 4, "three of some 2,100 bytes, and one that is being sent"
        with deployment.stream(f"job:{job}", cursor) as behind:
            late = (step for one in behind if one.name == "points" for step in one.data["curves"][0]["steps"])
            assert list(itertools.islice(late, 20)) == list(range(1, 21))
            agent.points(range(21, 22))
            assert (next(live), next(late)) == (21, 21)


def test_what_changed_is_encoded_once_for_all_the_viewers_of_a_team(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large it is."""
    encoded: list[str] = []
    encode = event_broadcast.format_sse_event

    def count(**fields: str) -> bytes:
        encoded.append(fields["event"])
        return encode(**fields)

    async def first_job(reader: StreamReader) -> bytes:
        async for group in reader.groups():
            if group is not None and (sent := group.encoded_for(frozenset({"jobs"}), reader.position)):
                return sent
        raise AssertionError("the stream ended")

    async def watch_by(viewers: int) -> set[bytes]:
        with deployment.store.read() as db:
            team = identity.authenticate(db, deployment.keys[1]).team
            now = StreamPosition(feed.latest_seq(db, team))
        notifier = ChangeNotifier("")
        async with contextlib.AsyncExitStack() as readers:
            broadcaster = EventBroadcaster(deployment.store, notifier)
            opened = [await readers.enter_async_context(broadcaster.open_reader(team, now)) for _ in range(viewers)]
            await asyncio.to_thread(deployment.submit)
            return set(await asyncio.gather(*map(first_job, opened)))

    monkeypatch.setattr(event_broadcast, "format_sse_event", count)
    monkeypatch.setattr(event_broadcast, "MAX_CACHED_BYTES", 1)
    assert len(asyncio.run(watch_by(200))) == 1
    assert encoded.count("job") == encoded.count("event") == 1
