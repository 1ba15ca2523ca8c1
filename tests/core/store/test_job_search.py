# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from uuid import UUID

import pytest
from shoestring_core.errors import InvalidRequest
from shoestring_core.store import job_search, jobs
from shoestring_core.store.tables import JobRow
from sqlalchemy import update

from tests.core.world import World

MATCHES = [
    ("", "abc"),
    ("state=queued", "ac"),
    ("status=queued", "ac"),
    ("status=stopped", "b"),
    ("status=stopped,queued", "abc"),
    ("status!=stopped", "ac"),
    ("status=failed", ""),
    ("state=queued,ended", "abc"),
    ("state!=ended", "ac"),
    ("DIGITS status=queued", "c"),
    ("nothing-of-this-name", ""),
    ("end=user_stop", "b"),
    ("end!=user_stop", "ac"),
    ("name=a", "a"),
    ("name~DIGITS", "c"),
    ("name~digits state=ended", ""),
    ("name~%", ""),
    ("name~_", ""),
    ("'name~its of'", "c"),
    ("recipe=digits/quickstart", "abc"),
    ("recipe=digits/quickstart@1", "abc"),
    ("recipe=digits/quick", ""),
    ("recipe~quick", "abc"),
    ("recipe!=digits/quickstart", ""),
    ("tag.week=3", "b"),
    ("tag.week!=3", "ac"),
    ("tag.week=3,4", "bc"),
    ("tag.owner.name='ann b'", "c"),
    ("name='; drop table jobs'", ""),
]


def test_a_filter_returns_the_matching_jobs(world: World) -> None:
    world.job(name="a")
    b = world.job(name="b", tags={"week": 3})
    world.job(name="c: digits of", tags={"week": 4, "owner.name": "ann b"})
    world.store.write(lambda db: jobs.stop(db, b.id, "ann"))
    with world.store.read() as db:
        for text, found in MATCHES:
            names = sorted(job.name[0] for job in job_search.search(db, world.team, text).jobs)
            assert "".join(names) == found, text


def test_a_job_is_found_by_a_part_of_its_id_however_many_are_newer(world: World) -> None:
    job = str(world.job().id)
    for _ in range(3):
        world.job()
    with world.store.read() as db:
        for text in (f"id={job}", f"id={job.upper()}", f"id~{job[:23]}", f"id~{job[-8:]}", job[-8:], job):
            assert [str(found.id) for found in job_search.search(db, world.team, text, limit=1).jobs] == [job], text


@pytest.mark.parametrize("typed", ["café", "cafe\u0301"])
@pytest.mark.parametrize("stored", ["café", "cafe\u0301"])
def test_a_filter_finds_a_name_or_tag_however_its_accents_were_typed(world: World, stored: str, typed: str) -> None:
    world.job(name=stored, tags={stored: stored})
    world.job(name="cafe")
    with world.store.read() as db:
        for text in (typed, f"name={typed}", f"name~{typed}", f"tag.{typed}={typed}"):
            assert [job.name for job in job_search.search(db, world.team, text).jobs] == ["café"], text


def test_a_filter_matches_users(world: World) -> None:
    world.job()
    with world.store.read() as db:
        assert len(job_search.search(db, world.team, f"'user={world.me.user_name}'").jobs) == 1
        assert len(job_search.search(db, world.team, "user=nobody").jobs) == 0


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("!queued", "FIELD=VALUE"),
        ("stat=queued", "Did you mean state?"),
        ("state=failed", "Did you mean status=failed?"),
        ("price=3", "Fields:"),
        ("state=quued", "Values:"),
        ("status=ended", "Did you mean state=ended?"),
        ("status=quued", "Values:"),
        ("end=x", "Values:"),
        ("name='a", None),
        ("=", "FIELD=VALUE"),
        ("name=" + "x" * 500, None),
        ("name=\x00", None),
    ],
)
def test_an_invalid_filter_is_refused_with_a_hint(world: World, text: str, hint: str | None) -> None:
    with world.store.read() as db, pytest.raises(InvalidRequest) as refused:
        job_search.search(db, world.team, text)
    assert hint is None or hint in (refused.value.hint or "")


def test_a_filter_compares_with_a_bounded_number_of_values(world: World) -> None:
    with world.store.read() as db:
        assert job_search.search(db, world.team, "user=" + ",".join("a" * 32)).jobs == []
        for text in ("user=" + ",".join("a" * 33), "tag.a~b " * 33):
            with pytest.raises(InvalidRequest, match="at most 32 values"):
                job_search.search(db, world.team, text)


def test_pages_have_every_job_once_newest_first(world: World) -> None:
    made = [world.job().id for _ in range(7)]
    world.store.write(lambda db: db.execute(update(JobRow).values(created_at=5)))
    seen: list[UUID] = []
    cursor = None
    for size in itertools.chain([3], itertools.repeat(2)):
        with world.store.read() as db:
            page = job_search.search(db, world.team, "state=queued", cursor, size)
        assert len(page.jobs) <= size
        seen += [job.id for job in page.jobs]
        world.job()
        world.store.write(lambda db: db.execute(update(JobRow).where(JobRow.created_at > 5).values(created_at=6)))
        if (cursor := page.next_cursor) is None:
            break
    assert seen == made[::-1]


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "é", "a" * 31, "a" * 100_000])
def test_an_invented_cursor_is_refused(world: World, cursor: str) -> None:
    with world.store.read() as db, pytest.raises(InvalidRequest) as refused:
        job_search.search(db, world.team, "", cursor)
    assert refused.value.hint
