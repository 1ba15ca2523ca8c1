# SPDX-License-Identifier: Apache-2.0
"""The servers that other tests stand on are real, empty at the start, and break when told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest
import redis
from playwright.sync_api import Page
from sqlalchemy import create_engine, text

from tests.servers import PATIENCE_S, FaultProxy, Valkey, until


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_gets_an_empty_database(database_url: str, database_kind: str, turn: int) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        assert connection.dialect.name == database_kind
        connection.execute(text("CREATE TABLE things (turn INTEGER)"))
        connection.execute(text("INSERT INTO things VALUES (:turn)"), {"turn": turn})
    engine.dispose()


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_gets_an_empty_broker(redis_url: str, turn: int) -> None:
    with redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("turn", turn)


def test_a_killed_broker_comes_back_empty_on_its_port(valkey: Valkey) -> None:
    with redis.from_url(valkey.url) as client:
        client.set("kept", "no")
        valkey.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("kept")
        valkey.start()
        assert client.get("kept") is None


def test_the_proxy_delays_swallows_cuts_and_refuses(redis_url: str, fault_proxy: Callable[[int], FaultProxy]) -> None:
    proxy = fault_proxy(int(redis_url.rsplit(":", 1)[1].split("/")[0]))
    patient, impatient = {"socket_timeout": PATIENCE_S, "retry": None}, {"socket_timeout": 0.5, "retry": None}
    with redis.Redis(port=proxy.port, **patient) as client, redis.Redis(port=proxy.port, **impatient) as gives_up:
        assert client.ping()
        proxy.delay_s = 0.05
        begin = time.monotonic()
        assert client.ping()
        assert time.monotonic() - begin >= 0.1
        proxy.delay_s = 0.0
        proxy.blackhole = True
        with pytest.raises(redis.TimeoutError):
            gives_up.ping()
        proxy.blackhole = False
        proxy.cut()
        until(lambda: answers(client))
        proxy.refuse = True
        proxy.cut()
        with pytest.raises(redis.ConnectionError):
            client.ping()


def answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):  # of the connection that was cut
        return bool(client.ping())
    return False


def test_chromium_opens_a_page(page: Page) -> None:
    page.set_content("<h1>Shoestring</h1>")
    assert page.inner_text("h1") == "Shoestring"
