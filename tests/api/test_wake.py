# SPDX-License-Identifier: Apache-2.0
"""Waiting for something to change."""

from __future__ import annotations

import asyncio

from shoestring_api.wake import Ear


def test_an_ear_that_is_rung_and_told_to_leave_at_once_leaves():
    """As when the process ends: a follower that stayed would keep its stream, and the process, for ever."""
    assert asyncio.run(leaves())


async def leaves() -> bool:
    ear = Ear()

    async def follow() -> None:
        while True:
            ear.clear()
            await ear.wait()

    follower = asyncio.create_task(follow())
    await asyncio.sleep(0)
    ear.ring()
    await asyncio.sleep(0)
    follower.cancel()
    done, _ = await asyncio.wait([follower], timeout=5)
    return follower in done
