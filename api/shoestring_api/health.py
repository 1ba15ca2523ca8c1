# SPDX-License-Identifier: Apache-2.0
"""Whether the service works, for people, orchestrators and Prometheus."""

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
from shoestring_core.store import rows

from shoestring_api import service as asking
from shoestring_api.service import Here, Service

router = APIRouter(tags=["health"])

REDIS_TIMEOUT_S = 0.5
WORKER_SILENT_US = 30_000_000


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": rest.Readiness}})
def readyz(service: Here, response: Response) -> rest.Readiness:
    """What the service needs, part by part.

    Ready means that the database answers: without Redis or a worker it still takes jobs and reports.
    """
    parts = {"database": "ok", "redis": _redis(service)}
    try:
        with service.store.read() as db:
            worker = rows.services(db).get("worker")
            silent = worker is None or db.now - worker.seen_at > WORKER_SILENT_US
            parts["worker"] = "no worker has ticked for 30 s: start one" if silent else "ok"
    except ShoestringError as error:
        parts["database"] = " ".join(filter(None, (error.message, error.hint)))
    ready = parts["database"] == "ok"
    response.status_code = 200 if ready else 503
    return rest.Readiness(ready=ready, parts=parts)


def _redis(service: Service) -> str:
    if not service.settings.redis_url:
        return "not set: hints and wake-ups between processes are off"
    try:
        with redis.Redis.from_url(
            service.settings.redis_url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
        ) as client:
            client.ping()
    except (RedisError, OSError) as error:
        return f"does not answer ({error}): everything goes on, up to a second later"
    return "ok"


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(service: Here, request: Request) -> Response:
    """Counters and gauges for Prometheus. Needs a key unless the service is bound to loopback."""
    if not service.settings.on_loopback():
        asking.caller(request, service)
    lines = generate_latest(REGISTRY) + generate_latest(_Now(service))
    return Response(lines, media_type=CONTENT_TYPE_LATEST)


class _Now:
    """What is counted when Prometheus asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        with self._service.store.read() as db:
            jobs, machines = rows.states(db)
        for name, help_, states in (("jobs", "Jobs by state", jobs), ("machines", "Machines by state", machines)):
            family = GaugeMetricFamily(f"shoestring_{name}", help_, labels=["state"])
            for state, count in sorted(states.items()):
                family.add_metric([state], count)
            yield family
        if (hints := self._service.hints) is not None:
            family_of_hints = CounterMetricFamily("shoestring_hints", "Hints to the worker", labels=["outcome"])
            family_of_hints.add_metric(["sent"], hints.sent)
            family_of_hints.add_metric(["dropped"], hints.dropped)
            yield family_of_hints
