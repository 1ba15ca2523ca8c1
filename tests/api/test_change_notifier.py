# SPDX-License-Identifier: Apache-2.0
"""Waiting for change notifications."""

from __future__ import annotations

import asyncio

from shoestring_api.change_notifier import ChangeSignal


def test_a_waiter_that_is_notified_and_cancelled_at_once_ends():
    """As at shutdown: a waiter that swallowed its cancellation would keep its stream, and the process, running."""
    assert asyncio.run(_cancelled_waiter_ends())


async def _cancelled_waiter_ends() -> bool:
    signal = ChangeSignal()

    async def follow() -> None:
        while True:
            signal.clear()
            await signal.wait()

    follower = asyncio.create_task(follow())
    await asyncio.sleep(0)
    signal.notify()
    await asyncio.sleep(0)
    follower.cancel()
    done, _ = await asyncio.wait([follower], timeout=5)
    return follower in done
