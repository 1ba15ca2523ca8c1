# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from shoestring_api import event_broadcast, stream_authentication
from shoestring_api.routes import stream
from shoestring_core.store import events as feed
from shoestring_core.store.tables import EventRow, JobRow, KeyRow, MembershipRow
from sqlalchemy import Delete, Update, delete, update

from tests.api.deployment import Agent, Deployment, ServerSentEvent, events
from tests.servers import Valkey, until

MUCH = 30


def test_what_happens_arrives_at_once(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    with deployment.stream(f"job:{job}") as stream:
        agent.points(range(1, 4))
        points = next(one for one in stream if one.name == "points")
        assert points.data["job"] == str(job)
        assert points.data["curves"][0] | {"times": []} == {
            "name": "train/loss", "generation": 1, "machine": str(agent.machine), "rolled_back": False,
            "steps": [1, 2, 3], "times": [], "values": [1.1, 2.1, 3.1],
        }  # fmt: skip
        assert next(one for one in stream if one.name == "job").data["progress"]["step"] == 3
        agent.log(b"one\ntwo\nthr")
        assert _texts(stream, 2) == ["one", "two"]
        agent.log(b"ee\n")
        assert _texts(stream, 1) == ["three"]
        deployment.member.post(f"/v1/jobs/{job}:stop")
        moved = next(one for one in stream if one.name == "event")
        assert (moved.data["kind"], moved.data["data"]["to"]) == ("job", "stopping")
        assert next(one for one in stream if one.name == "job").data["state"] == "stopping"


def test_the_list_moves_and_so_does_money(deployment: Deployment) -> None:
    with deployment.stream("jobs,budget") as stream:
        job = deployment.submit()
        assert next(one for one in stream if one.name == "job").data["id"] == str(job)
        team = next(one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
        deployment.admin.put(f"/v1/budgets/{team['id']}", json={"limit": "12.50"})
        budgets = (one.data for one in stream if one.name == "budget")
        assert next(one for one in budgets if one["kind"] == "team" and one["limit"])["limit"]["amount"] == "12.50"


def test_nothing_is_missed_or_seen_twice_under_writes_and_reconnects(deployment: Deployment) -> None:
    """Points and log lines carry numbers; a client that comes and goes must have each of them once, in order."""
    job, (agent,) = deployment.running()
    cursor = deployment.member.get(f"/v1/jobs/{job}/metrics", params={"keys": ""}).json()["cursor"]
    writer = threading.Thread(target=_write_much, args=(agent, MUCH))
    writer.start()
    steps: list[int] = []
    lines: list[int] = []
    visits = 0
    while len(steps) < MUCH or len(lines) < MUCH:
        visits += 1
        with deployment.stream(f"job:{job}", cursor) as stream:
            for message in itertools.islice(stream, visits % 7 + 1):
                steps += (
                    [step for curve in message.data["curves"] for step in curve["steps"]]
                    if message.name == "points"
                    else []
                )
                lines += [int(line["text"]) for line in message.data["lines"]] if message.name == "logs" else []
                cursor = message.cursor or cursor
                if len(steps) >= MUCH and len(lines) >= MUCH:
                    break  # nothing more comes
        assert visits < 400
    writer.join()
    assert steps == list(range(1, MUCH + 1))
    assert lines == list(range(1, MUCH + 1))
    assert visits > 5


@pytest.mark.any_database
def test_a_viewer_far_back_catches_up_and_then_goes_on_live(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_broadcast, "EVENTS_PER_READ", 20)
    job, (agent,) = deployment.running()
    cursor = deployment.member.get(f"/v1/jobs/{job}/metrics").json()["cursor"]
    for step in range(1, 51):
        agent.points(range(step, step + 1))
    with deployment.stream(f"job:{job}", cursor) as stream:
        seen = list(itertools.islice(_steps(stream), 50))
        agent.points(range(51, 52))
        assert [*seen, next(_steps(stream))] == list(range(1, 52))


@pytest.mark.any_database
def test_a_cursor_whose_history_is_gone_gets_resync(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    cursor = deployment.member.get(f"/v1/jobs/{job}/metrics").json()["cursor"]
    for step in range(1, 4):
        agent.points(range(step, step + 1))
    with deployment.store.writer.begin() as connection:
        connection.execute(delete(EventRow).where(EventRow.kind == "batch"))
    with deployment.stream(f"job:{job}", cursor) as stream:
        assert next(stream).name == "resync"
        agent.points(range(4, 5))
        assert next(_steps(stream)) == 4


@pytest.mark.any_database
def test_a_cursor_from_before_a_backup_was_restored_gets_resync(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    with deployment.store.read() as db:
        team = db.sql.get_one(JobRow, job).team_id
        ahead = feed.to_cursor(team, feed.latest_seq(db, team) + 1_000)
    with deployment.stream(f"job:{job}", ahead) as stream:
        assert next(stream).name == "resync"
        agent.points(range(1, 2))
        assert next(_steps(stream)) == 1


@pytest.mark.any_database
@pytest.mark.parametrize("topics", ["", "nothing", "job:", "job:1", "jobs,job:x"])
def test_topics_that_make_no_sense_are_refused(deployment: Deployment, topics: str) -> None:
    answer = deployment.member.get("/v1/stream", params={"topics": topics})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")


def test_only_the_own_team_is_heard(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    assert deployment.stranger.get("/v1/stream", params={"topics": f"job:{job}"}).status_code == 404
    assert deployment.nobody.get("/v1/stream").status_code == 401
    cursor = deployment.member.get(f"/v1/jobs/{job}/metrics").json()["cursor"]
    answer = deployment.stranger.get("/v1/stream", params={"cursor": cursor})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    with deployment.stranger.stream("GET", "/v1/stream", params={"topics": "jobs,budget"}) as answer:
        theirs = events(answer.iter_lines())
        agent.points(range(1, 2))
        deployment.submit()
        own = deployment.stranger.post("/v1/jobs", json={"spec": {"recipe": "digits/quickstart"}}).json()["id"]
        assert next(one for one in theirs if one.name == "job").data["id"] == own


@pytest.mark.parametrize(
    "change",
    [
        update(KeyRow).values(revoked_at=1),
        update(KeyRow).values(expires_at=1),
        delete(MembershipRow),
        update(MembershipRow).values(role="member"),
    ],
    ids=["revoked", "expired", "removed from the team", "demoted"],
)
def test_an_open_stream_ends_with_the_rights_of_who_opened_it(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, change: Update | Delete
) -> None:
    monkeypatch.setattr(stream_authentication, "AUTHENTICATION_INTERVAL_S", 0.0)
    with deployment.admin.stream("GET", "/v1/stream") as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": connected"
        deployment.store.write(lambda db: db.execute(change))
        assert not [line for line in lines if line.startswith("data:")], "it ends, and nothing more is told"


def test_the_stream_of_a_browser_ends_when_that_is_signed_out(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_authentication, "AUTHENTICATION_INTERVAL_S", 0.0)
    with deployment.client() as browser:
        csrf = browser.post("/v1/session", json={"key": deployment.keys[1]}).json()["csrf"]
        with browser.stream("GET", "/v1/stream") as answer:
            assert browser.delete("/v1/session", headers={"X-CSRF-Token": csrf}).status_code == 204
            assert ": connected" in list(answer.iter_lines()), "all of them: it ends"


@pytest.mark.any_database
def test_a_stream_without_messages_is_seen_to_be_alive(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PING_INTERVAL_S", 0)
    start = deployment.member.get("/v1/me").json()["cursor"]
    with deployment.stream("jobs") as messages:
        ping = next(messages)
    assert (ping.name, ping.data, ping.cursor) == ("ping", {}, start)


@pytest.mark.any_database
def test_a_stream_shows_what_happens_between_its_headers_and_its_first_read(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = []
    open_reader = event_broadcast.EventBroadcaster.open_reader

    @contextlib.asynccontextmanager
    async def submit_and_open(*arguments: Any) -> AsyncIterator[event_broadcast.StreamReader]:
        submitted.append(await asyncio.to_thread(deployment.submit))
        async with open_reader(*arguments) as reader:
            yield reader

    monkeypatch.setattr(event_broadcast.EventBroadcaster, "open_reader", submit_and_open)
    with deployment.stream("jobs") as messages:
        assert next(one for one in messages if one.name == "job").data["id"] == str(submitted[0])


def test_a_stream_from_the_cursor_of_the_sign_in_misses_nothing(deployment: Deployment) -> None:
    start = deployment.member.get("/v1/me").json()["cursor"]
    job = deployment.submit()
    with deployment.stream("jobs", start) as messages:
        assert next(messages).data["id"] == str(job)


@pytest.mark.any_database
def test_a_person_has_at_most_so_many_streams(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_STREAMS", 1)
    with deployment.stream("jobs"):
        refused = deployment.member.get("/v1/stream")
        assert (refused.status_code, refused.json()["code"]) == (409, "too-many")
        with deployment.stranger.stream("GET", "/v1/stream") as theirs:
            assert theirs.status_code == 200
    until(lambda: not deployment.state.open_streams.total())
    with deployment.stream("jobs"):
        pass


def test_a_second_process_hears_of_commits_through_redis(
    deployment: Deployment, migrated_url: str, tmp_path: Path, valkey: Valkey
) -> None:
    with (
        Deployment(migrated_url, tmp_path / "a", redis_url=valkey.url) as first,
        Deployment(migrated_url, tmp_path / "b", redis_url=valkey.url) as second,
    ):
        job, (agent,) = first.running()
        before = agent.report()
        assert before.report_interval_s == 5
        with second.stream(f"job:{job}") as stream:
            assert agent.orders(before.etag).report_interval_s == 0.25, "watched at the other process"
            agent.points(range(1, 2))
            assert next(_steps(stream)) == 1
            valkey.kill()
            agent.points(range(2, 3))
            assert next(_steps(stream)) == 2, "without Redis it looks each second"


def _write_much(agent: Agent, count: int) -> None:
    for number in range(1, count + 1):
        agent.points(range(number, number + 1))
        agent.log(f"{number}\n".encode())


def _steps(stream: Iterator[ServerSentEvent]) -> Iterator[int]:
    return (step for one in stream if one.name == "points" for curve in one.data["curves"] for step in curve["steps"])


def _texts(stream: Iterator[ServerSentEvent], count: int) -> list[str]:
    found = (line["text"] for one in stream if one.name == "logs" for line in one.data["lines"])
    return list(itertools.islice(found, count))
