# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from threading import Barrier, Thread

import pytest
from shoestring_core.errors import InvalidRequest
from shoestring_core.store.db import Write
from shoestring_core.store.group_commit import GroupCommit
from shoestring_core.store.tables import ServiceRow
from sqlalchemy import insert

from tests.api.deployment import Deployment


def test_writes_that_come_together_each_get_their_own_outcome(deployment: Deployment) -> None:
    """Thirty at once: some are refused, some run into a mistake of ours; the others are stored, whole."""
    group = GroupCommit(deployment.store)
    start = Barrier(30)
    outcomes: dict[int, object] = {}

    def write(number: int) -> None:
        def work(db: Write) -> int:
            db.sql.execute(insert(ServiceRow).values(name=f"service {number}", up_since=number, last_heartbeat_at=0))
            if number % 5 == 3:
                raise InvalidRequest("refused")
            if number % 5 == 4:
                raise ZeroDivisionError
            return number

        start.wait()
        try:
            outcomes[number] = group.write(work)
        except (InvalidRequest, ZeroDivisionError) as error:
            outcomes[number] = type(error)

    threads = [Thread(target=write, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = {3: InvalidRequest, 4: ZeroDivisionError}
    assert outcomes == {number: wanted.get(number % 5, number) for number in range(30)}
    with deployment.store.read() as db:
        stored = {name for number in range(30) if db.sql.get(ServiceRow, name := f"service {number}")}
    assert stored == {f"service {number}" for number in range(30) if number % 5 < 3}


def test_a_write_alone_raises_what_it_raised(deployment: Deployment) -> None:
    with pytest.raises(InvalidRequest):
        GroupCommit(deployment.store).write(_refused)


def _refused(_: Write) -> None:
    raise InvalidRequest("no")
