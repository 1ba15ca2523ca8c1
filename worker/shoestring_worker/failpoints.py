# SPDX-License-Identifier: Apache-2.0
"""Failpoints: around each commit and each call to a provider, a test can end, delay or repeat a worker.

A process that dies between two of them might as well have died at one: nothing outside of it has changed meanwhile. In
a service nothing is planted, and `around` only calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
Plant = Callable[[str, Callable[[], Any]], Any]
"""Is given the name of each failpoint that is reached and the call that it is around; returns its result, or raises."""

_planted: Plant | None = None


def around(name: str, call: Callable[[], T]) -> T:
    """Return what `call` returns. `name`: the function of the store, or the verb of the provider."""
    if _planted is None:
        return call()
    result: T = _planted(name, call)
    return result


@contextmanager
def plant(planted: Plant) -> Iterator[None]:
    """For all threads of this process."""
    global _planted
    _planted = planted
    try:
        yield
    finally:
        _planted = None
