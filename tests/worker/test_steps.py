# SPDX-License-Identifier: Apache-2.0
"""What is logged of items that fail."""

from __future__ import annotations

import pytest
from shoestring_core.errors import DatabaseUnavailable, Unavailable
from shoestring_worker.steps import LOG_INTERVAL_S, ItemRunner


def fail(failure: Exception) -> None:
    raise failure


@pytest.mark.parametrize("failure", [Unavailable("it is down"), RuntimeError("a mistake")])
def test_an_item_that_keeps_failing_is_logged_once_a_minute_and_counted_anew_after_a_pause(
    caplog: pytest.LogCaptureFixture, failure: Exception
):
    now = 0.0
    items = ItemRunner(lambda: now)

    def logged(at: float) -> list[str]:
        nonlocal now
        now = at
        caplog.clear()
        items.run("the bill", fail, failure)
        return [record.getMessage().partition("(failure ")[2].split()[0] for record in caplog.records]

    times = (0.0, 1.0, LOG_INTERVAL_S - 1, LOG_INTERVAL_S, 2 * LOG_INTERVAL_S - 1)
    assert [logged(at) for at in times] == [["1"], [], [], ["4"], []]
    assert logged(times[-1] + 2 * LOG_INTERVAL_S) == ["1"]
    assert items.run("the bill", lambda: "paid") == "paid"
    assert logged(now + 1) == ["1"]


def test_nothing_can_be_served_without_the_database():
    with pytest.raises(DatabaseUnavailable):
        ItemRunner(lambda: 0.0).run("the bill", fail, DatabaseUnavailable("it is down"))
