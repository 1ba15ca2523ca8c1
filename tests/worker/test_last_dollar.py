# SPDX-License-Identifier: Apache-2.0
"""Two workers and four API processes race for what is left of a budget, on one PostgreSQL."""

from __future__ import annotations

import functools
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.managers import BaseManager, Server
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from shoestring_api.app import create_app
from shoestring_api.app_state import AppState
from shoestring_api.settings import ApiSettings
from shoestring_core import money
from shoestring_core.decide import funding
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.store import identity, ledger
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.fleet import service_heartbeats
from shoestring_core.store.objects.local import LocalObjects
from shoestring_core.store.tables import AccountRow, JobRow, UserRow
from shoestring_worker.control_loop import ControlLoop
from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.providers.sim import SimulatedProvider
from sqlalchemy import func, select

from tests.servers import PATIENCE_S, Postgres, free_port, until

SECRET = "a secret that only this test has"
SPEC = {"recipe": "digits/quickstart", "resources": {"nodes": 1}}
TIMEOUTS = Timeouts()
HOLD = funding.initial_hold("0.526", TIMEOUTS)
MEMBER_CAP, TEAM_CAP, AFFORDABLE, SLOTS, JOBS = 3, 4, 5, 8, 12

_context = multiprocessing.get_context("fork")  # they have all imported what they need


class Cloud(BaseManager):
    """The provider, in this process; each worker has a proxy of it."""


@dataclass
class Race:
    url: str
    store: Store
    provider: SimulatedProvider
    apis: list[httpx.Client]

    def at_once(self, request: Callable[[httpx.Client, int], httpx.Response], count: int) -> Counter[int]:
        """Send requests to all API processes at the same moment, in turn; returns the statuses."""
        start = threading.Barrier(count)

        def send(number: int) -> int:
            start.wait(timeout=PATIENCE_S)
            return request(self.apis[number % len(self.apis)], number).status_code

        with ThreadPoolExecutor(count) as pool:
            return Counter(pool.map(send, range(count)))

    def states(self) -> Counter[str]:
        with self.store.read() as db:
            return Counter(dict(db.sql.execute(select(JobRow.state, func.count()).group_by(JobRow.state)).all()))

    def waits(self) -> Counter[str | None]:
        with self.store.read() as db:
            return Counter(db.sql.scalars(select(JobRow.wait_reason).where(JobRow.state == "queued")).all())

    def account(self, kind: str, owner: str = "%") -> AccountRow:
        with self.store.read() as db:
            return db.sql.scalars(select(AccountRow).where(AccountRow.kind == kind, AccountRow.owner.like(owner))).one()

    def member(self, name: str) -> AccountRow:
        with self.store.read() as db:
            user = db.sql.scalars(select(UserRow.id).where(UserRow.name == name)).one()
        return self.account("member", f"%/{user}")

    def cap(self, account: AccountRow, jobs: int | None) -> None:
        """By all API processes at once."""
        body = {"max_jobs": jobs, "max_gpus": None, "reason": "for the race"}
        path = f"/v1/budgets/{account.id}/concurrency"
        assert self.at_once(lambda api, _: api.put(path, json=body), 8) == {200: 8}

    def limit(self, account: AccountRow, micro: int | None) -> None:
        self.store.write(lambda db: ledger.set_limit(db, account.id, micro, actor="test", reason="for the race"))


@pytest.fixture
def race(postgres: Postgres, tmp_path: Path) -> Iterator[Race]:
    """Four API processes and two workers, which tick all the time, on a database of their own."""
    name = postgres.create()
    url = postgres.url(name)
    provider = SimulatedProvider(lambda: time.time_ns() // 1000, slots=SLOTS)
    Cloud.register("provider", callable=lambda: provider, exposed=("offers", "launch", "list", "terminate"))
    cloud = Cloud(address=str(tmp_path / "cloud"), authkey=b"cloud").get_server()
    threading.Thread(target=_manage, args=(cloud,), daemon=True).start()
    with closing(open_store(url)) as store:
        store.migrate()
        ada = store.write(lambda db: identity.ensure_admin(db, "lab", "vision", "ada"))
        store.write(lambda db: identity.ensure_admin(db, "lab", "vision", "ben"))
        store.write(lambda db: service_heartbeats.record_heartbeat(db, "api", 0))
        _, key = store.write(lambda db: identity.create_key(db, "pat", ada, None))
        store.writer.dispose()  # no connection is shared with the forked
        ended, ports = _context.Event(), [free_port() for _ in range(4)]
        started: list[BaseProcess] = []
        for target, arguments in [
            *((_serve, (url, port, tmp_path)) for port in ports),
            *((_work, (url, str(tmp_path / "cloud"), tmp_path, ended)) for _ in range(2)),
        ]:
            started.append(_context.Process(target=target, args=arguments, daemon=True))
            started[-1].start()
        headers = {"Authorization": f"Bearer {key}"}
        apis = [
            httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=PATIENCE_S, trust_env=False, verify=False
            )
            for port in ports
        ]
        try:
            for api in apis:
                until(functools.partial(_answers, api))
            yield Race(url, store, provider, apis)
            assert all(one.exitcode is None for one in started), "a process has ended"
        finally:
            ended.set()
            for api in apis:
                api.close()
            for one in started[-2:]:
                one.join(timeout=PATIENCE_S)
            for one in started:
                one.kill()
                one.join()
            cloud.stop_event.set()
    postgres.drop(name)


def _manage(cloud: Server) -> None:
    with suppress(SystemExit):  # it ends so, for it expects a process of its own
        cloud.serve_forever()


def _serve(url: str, port: int, folder: Path) -> None:
    settings = ApiSettings(
        database_url=url, secret=SECRET, port=port, object_store=str(folder / "objects"), data_roots="", hooks_roots=""
    )
    uvicorn.run(create_app(AppState.open(settings)), port=port, log_level="warning")


def _work(url: str, cloud: str, folder: Path, ended: Event) -> None:
    manager = Cloud(address=cloud, authkey=b"cloud")
    manager.connect()
    proxy: Any = manager.provider()  # type: ignore[attr-defined]
    providers = {"sim": ManagedProvider(proxy, TIMEOUTS)}
    with closing(open_store(url)) as store:
        objects = LocalObjects(folder / "objects", SECRET, "http://objects")
        loop = ControlLoop(store, providers, objects, TIMEOUTS, SECRET, "http://127.0.0.1:1")
        while not ended.wait(0.02):
            loop.tick()
        loop.close()


def _answers(api: httpx.Client) -> bool:
    try:
        return api.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_exactly_what_the_last_dollars_pay_for_and_caps_allow_is_moved_and_started_and_no_slot_is_used_twice(
    race: Race,
) -> None:
    ada, ben, team = race.member("ada"), race.member("ben"), race.account("team")
    race.limit(ada, HOLD)
    race.limit(ben, 1)

    # Eight transfers of the same last dollars, each with its own key: one is made.
    move = {"to": str(ben.id), "amount": money.to_decimal(HOLD), "reason": "the last"}
    answers = race.at_once(lambda api, _: api.post(f"/v1/budgets/{ada.id}:transfer", json=move), 8)
    assert answers == {200: 1, 409: 7}
    assert [race.account("member", one.owner).limit_micro for one in (ada, ben)] == [0, HOLD + 1]

    # Twelve jobs, of which ada may run three, then her team four: set by all at once, while workers start them.
    race.limit(ada, None)
    race.cap(ada, MEMBER_CAP)
    race.cap(team, TEAM_CAP)
    assert race.at_once(lambda api, _: api.post("/v1/jobs", json={"spec": SPEC}), JOBS) == {201: JOBS}
    for capped, uncapped in ((MEMBER_CAP, ada), (TEAM_CAP, team)):
        until(lambda running=capped: len(race.provider.alive()) >= running and race.waits()["cap"] == JOBS - running)
        assert race.states() == {"launching": capped, "queued": JOBS - capped}
        if uncapped is team:  # and dollars for five of them but for a micro-dollar of the sixth
            race.limit(team, (AFFORDABLE + 1) * HOLD - 1)
        race.cap(uncapped, None)
    until(lambda: len(race.provider.alive()) >= AFFORDABLE and race.waits()["budget"] >= 1)
    assert race.states() == {"launching": AFFORDABLE, "queued": JOBS - AFFORDABLE}
    used = race.account("team")
    assert (used.posted + used.held, used.overdraft) == (AFFORDABLE * HOLD, 0)

    # Enough for all of them: now the provider's slots are the cap.
    more = {"limit": "100.00", "reason": "enough"}
    raised = race.at_once(lambda api, _: api.put(f"/v1/budgets/{team.id}", json=more), 4)
    assert raised[200] >= 1
    assert set(raised) <= {200, 412}
    until(lambda: len(race.provider.alive()) >= SLOTS and race.waits()["slots"] >= 1)
    assert race.states() == {"launching": SLOTS, "queued": JOBS - SLOTS}
    assert len([entry for entry in race.provider.journal if entry.event == "launch"]) == SLOTS
    with race.store.read() as db:
        assert ledger.find_discrepancies(db) == []
