# SPDX-License-Identifier: Apache-2.0
"""Open streams are authenticated again together, and none trusts an authentication older than the interval."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from shoestring_api.stream_authentication import AUTHENTICATION_INTERVAL_S, StreamAuthentication, StreamAuthentications
from shoestring_core.store.identity import Principal


def principal(key: int) -> Principal:
    return Principal(UUID(int=1), "ann", UUID(int=2), "vision", "member", key=UUID(int=key))


@dataclass
class World:
    """A clock, and keys that may be revoked."""

    now: float = 100.0
    revoked: set[int] = field(default_factory=set)
    checks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.streams = StreamAuthentications(lambda: self.now)

    def open(self, key: int) -> StreamAuthentication:
        def is_valid() -> bool:
            self.checks.append(key)
            return key not in self.revoked

        return self.streams.open(principal(key), is_valid)


async def are_valid(*streams: StreamAuthentication) -> list[bool]:
    return await asyncio.gather(*(stream.is_valid() for stream in streams))


def test_all_streams_of_a_key_are_authenticated_by_one_check() -> None:
    world = World()

    async def watch() -> None:
        streams = [world.open(1 + number % 2) for number in range(200)]
        assert all(await are_valid(*streams))
        assert not world.checks, "they were authenticated just now"
        world.now += AUTHENTICATION_INTERVAL_S + 0.1
        assert all(await are_valid(*streams))

    asyncio.run(watch())
    assert sorted(world.checks) == [1, 2]


@pytest.mark.parametrize("opened_after_s", [0.0, 1.0, 4.9])
def test_a_revoked_key_ends_a_stream_within_the_interval_whenever_others_were_checked(opened_after_s: float) -> None:
    world = World()

    async def watch() -> None:
        first = world.open(1)
        world.now += opened_after_s
        second = world.open(1)
        world.now += AUTHENTICATION_INTERVAL_S + 0.1 - opened_after_s
        assert await are_valid(first) == [True]
        world.revoked.add(1)
        world.now += AUTHENTICATION_INTERVAL_S + 0.1
        assert await are_valid(first, second) == [False, False]

    asyncio.run(watch())


def test_a_revoked_key_ends_no_stream_of_another() -> None:
    world = World()

    async def watch() -> None:
        streams = world.open(1), world.open(2)
        world.revoked.add(1)
        world.now += AUTHENTICATION_INTERVAL_S + 0.1
        assert await are_valid(*streams) == [False, True]

    asyncio.run(watch())
