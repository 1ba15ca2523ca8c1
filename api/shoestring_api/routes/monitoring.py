# SPDX-License-Identifier: Apache-2.0
"""Health checks for users and orchestrators, and metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

import redis
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from redis.exceptions import RedisError
from shoestring_core import rest
from shoestring_core.errors import ShoestringError
from shoestring_core.store import queries
from shoestring_core.store.fleet import leaks

from shoestring_api import dependencies
from shoestring_api.app_state import AppState
from shoestring_api.dependencies import StateDep

router = APIRouter(tags=["health"])

REDIS_TIMEOUT_S = 0.5
WORKER_TIMEOUT_US = 30_000_000


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Report that this process responds."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": rest.Readiness}})
def readyz(state: StateDep, response: Response) -> rest.Readiness:
    """Report the state of each dependency.

    Ready means that the database answers: without Redis or a worker, jobs and reports are still accepted.
    """
    parts = {"database": "ok", "redis": _check_redis(state)}
    try:
        with state.store.read() as db:
            worker = queries.load_services(db).get("worker")
            timed_out = worker is None or db.now - worker.last_heartbeat_at > WORKER_TIMEOUT_US
            parts["worker"] = "no worker has run for 30 s: start one" if timed_out else "ok"
    except ShoestringError as error:
        parts["database"] = " ".join(filter(None, (error.message, error.hint)))
    ready = parts["database"] == "ok"
    response.status_code = 200 if ready else 503
    return rest.Readiness(ready=ready, parts=parts)


def _check_redis(state: AppState) -> str:
    if not state.settings.redis_url:
        return "not configured: changes reach other processes up to a second later"
    try:
        with redis.Redis.from_url(
            state.settings.redis_url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
        ) as client:
            client.ping()
    except (RedisError, OSError) as error:
        return f"does not answer ({error}): changes reach other processes up to a second later"
    return "ok"


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(state: StateDep, request: Request) -> Response:
    """Counters and gauges for Prometheus. Requires an API key unless the service is bound to loopback."""
    if not state.settings.on_loopback():
        dependencies.authenticate(request, state)
    lines = generate_latest(REGISTRY) + generate_latest(_StateCollector(state))
    return Response(lines, media_type=CONTENT_TYPE_LATEST)


class _StateCollector:
    """Gauges that are computed at each scrape."""

    def __init__(self, state: AppState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        with self._state.store.read() as db:
            jobs, machines = queries.count_by_state(db)
            leaked = leaks.leaked(db)
        for name, help_, states in (("jobs", "Jobs by state", jobs), ("machines", "Machines by state", machines)):
            family = GaugeMetricFamily(f"shoestring_{name}", help_, labels=["state"])
            for state, count in sorted(states.items()):
                family.add_metric([state], count)
            yield family
        yield GaugeMetricFamily(
            "shoestring_leaked_dollars", "Cost of what ran at a provider without a job; the target is 0", leaked / 1e6
        )
        if (hints := self._state.tick_hints) is not None:
            hint_family = CounterMetricFamily("shoestring_tick_hints", "Tick hints to the worker", labels=["outcome"])
            hint_family.add_metric(["sent"], hints.sent)
            hint_family.add_metric(["dropped"], hints.dropped)
            yield hint_family
