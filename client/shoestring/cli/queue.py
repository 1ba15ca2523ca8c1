# SPDX-License-Identifier: Apache-2.0
"""`shoestring queue`: whose turn it is, why jobs wait, and when they are expected to start."""

from __future__ import annotations

from datetime import datetime

from shoestring_core import rest
from shoestring_core.wording.units import counted

from shoestring.cli.terminal import Json, Url, err, format_dollars, open_client, out, print_result, print_table
from shoestring.client import short_id

COLUMNS = ("PLACE", "ID", "JOB", "BY", "WAITS FOR", "STARTS", "COST", "OUTLOOK")
DROP = ("COST", "BY", "WAITS FOR", "STARTS")


def show_queue(url: Url = None, as_json: Json = False) -> None:
    """List your team's queued jobs in the order of service.

    With place, reason and expected start.

    \b
    shoestring queue
    shoestring queue --json
    """
    with open_client(url) as client:
        queue = client.queue()
    print_result(queue, as_json, lambda: _print(queue))


def _print(queue: rest.Queue) -> None:
    rows = [_row(one) for one in queue.jobs]
    print_table(COLUMNS, rows, "No job of your team is in the queue.", wrap=("OUTLOOK",), drop=DROP)
    if queue.waiting:
        others = queue.waiting - len(queue.jobs)
        err.print(f"{counted(queue.waiting, 'job')} in the queue{f', {others} of them not listed' if others else ''}.")
    for one in queue.jobs[:1]:
        if one.reason:
            out.print(f"{one.name}: {one.reason.text}")


def _row(one: rest.QueueEntry) -> tuple[str, ...]:
    start = one.start
    return (
        str(one.position),
        short_id(one.job),
        one.name,
        one.user,
        str(one.wait_reason or "nothing"),
        local_time(start.at) if start else "unknown",
        format_dollars(start.cost) if start and start.cost else "unknown",
        one.outlook.text,
    )


def local_time(at: datetime) -> str:
    return f"{at.astimezone():%d %b %H:%M}"
