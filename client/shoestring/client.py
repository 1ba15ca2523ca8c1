# SPDX-License-Identifier: Apache-2.0
"""The Python client: what the command line uses, and what a notebook or a script can.

from shoestring import Client
job = Client("http://127.0.0.1:8000", key).submit("recipe: digits/quickstart")
job = client.wait(job.id)
"""

from __future__ import annotations

import functools
import json
import random
import ssl
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

import httpx
from shoestring_core import rest

TIMEOUT = httpx.Timeout(20.0, connect=5.0)
TRIES = 4
RETRY_STATUS = frozenset({502, 503, 504})
STREAM_SILENCE_S = 45.0  # the service pings every 15 s: three missed pings mean a dead line

R = TypeVar("R", bound=rest.Resource)


class ServiceError(Exception):
    """The service refused, with a problem document (RFC 9457)."""

    def __init__(self, problem: rest.ProblemDocument) -> None:
        super().__init__(problem.detail or problem.title)
        self.problem = problem

    @property
    def code(self) -> str:
        return self.problem.code


class Unreachable(Exception):
    """No answer from the service after all tries."""


@dataclass(frozen=True)
class Message:
    """One event of the live stream: `name` is one of rest.STREAM_EVENTS."""

    name: str
    cursor: str | None
    data: dict[str, Any] = field(default_factory=dict)


class Client:
    """A service and a key. Reads are tried again; so are writes, which carry an Idempotency-Key.

    Raises ServiceError at once for what can't be an address or a key.
    """

    def __init__(self, url: str, key: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        _check_address(self.url)
        _check_key(key)
        self._http = httpx.Client(
            base_url=self.url, timeout=TIMEOUT, transport=transport, verify=certificates(),
            headers={"Authorization": f"Bearer {key}"},
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # --- jobs

    def submit(self, spec: str | Mapping[str, Any], *, dry_run: bool = False, key: UUID | None = None) -> rest.Job:
        """Queue a job from a spec (a tree, or YAML/JSON text). The same `key` returns the same job."""
        body = {"spec": spec if isinstance(spec, str) else dict(spec), "dry_run": dry_run}
        return self._post("/v1/jobs", rest.Job, body, key)

    def plan(self, spec: str | Mapping[str, Any]) -> rest.Plan:
        """Which machines `spec` would run on, how long and for how much; nothing is submitted."""
        return self._post("/v1/plans", rest.Plan, {"spec": spec if isinstance(spec, str) else dict(spec)})

    def job(self, job: UUID | str) -> rest.Job:
        return self._get(f"/v1/jobs/{job}", rest.Job)

    def jobs(self, *, where: str = "", cursor: str | None = None, limit: int = 50) -> rest.JobPage:
        """A page of the team's jobs, newest first; `where` is the filter, e.g. "state=running"."""
        return self._get("/v1/jobs", rest.JobPage, filter=where or None, cursor=cursor, limit=limit)

    def stop(self, job: UUID | str) -> rest.Job:
        return self._post(f"/v1/jobs/{job}:stop", rest.Job)

    def retry(self, job: UUID | str) -> rest.Job:
        """Submit the job again from its stored spec and its last checkpoint."""
        return self._post(f"/v1/jobs/{job}:retry", rest.Job)

    def resume(self, job: UUID | str) -> rest.Job:
        return self._post(f"/v1/jobs/{job}:resume", rest.Job)

    def wait(self, job: UUID | str, *, timeout_s: float | None = None, poll_s: float = 0.5) -> rest.Job:
        """Return the job once it has ended or paused. Raises TimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            found = self.job(job)
            if found.state in ("ended", "paused"):
                return found
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is still {found.state}: {found.sentence}")
            time.sleep(poll_s)

    def attempts(self, job: UUID | str) -> rest.AttemptList:
        return self._get(f"/v1/jobs/{job}/attempts", rest.AttemptList)

    def events(self, job: UUID | str, *, cursor: str | None = None) -> rest.EventPage:
        return self._get(f"/v1/jobs/{job}/events", rest.EventPage, cursor=cursor)

    def metrics(self, job: UUID | str, *, keys: str | None = None, attempts: str = "merged") -> rest.Metrics:
        return self._get(f"/v1/jobs/{job}/metrics", rest.Metrics, keys=keys, attempts=attempts)

    def logs(
        self, job: UUID | str, *, cursor: str | None = None, tail: int | None = None, rank: int | None = None
    ) -> rest.Logs:
        return self._get(f"/v1/jobs/{job}/logs", rest.Logs, cursor=cursor, tail=tail, rank=rank)

    def cost(self, job: UUID | str) -> rest.CostReport:
        return self._get(f"/v1/jobs/{job}/cost", rest.CostReport)

    def artifacts(self, job: UUID | str) -> rest.ArtifactList:
        return self._get(f"/v1/jobs/{job}/artifacts", rest.ArtifactList)

    def download(self, artifact: rest.Artifact, target: Path) -> None:
        """Write an artifact to `target`, whole or not at all."""
        draft = target.with_name(f".{target.name}.part")
        with self._http.stream("GET", artifact.url) as answer:
            if answer.status_code != 200:
                answer.read()
                raise _error(answer)
            with draft.open("wb") as file:
                for block in answer.iter_bytes():
                    file.write(block)
        draft.replace(target)

    # --- money, recipes, people, machines

    def budgets(self) -> list[rest.Budget]:
        return self._get("/v1/budgets", rest.BudgetList).budgets

    def set_budget(self, budget: UUID | str, limit: str, *, reason: str = "", etag: str | None = None) -> rest.Budget:
        headers = {"If-Match": etag} if etag else {}
        answer = self._call("PUT", f"/v1/budgets/{budget}", json={"limit": limit, "reason": reason}, headers=headers)
        return _read(answer, rest.Budget)

    def recipes(self) -> list[rest.Recipe]:
        return self._get("/v1/recipes", rest.RecipeList).recipes

    def me(self) -> rest.Me:
        return self._get("/v1/me", rest.Me)

    def login_link(self) -> str:
        """A link that signs a browser in once."""
        return f"{self.url}/login?code={self._post('/v1/login-codes', rest.LoginCode).code}"

    def reclaim(self, machine: UUID | str, *, notice_s: float = 120.0) -> rest.Machine:
        """Take a local machine as a spot provider would (admins)."""
        return self._post(f"/v1/machines/{machine}:reclaim", rest.Machine, {"notice_s": notice_s})

    # --- live

    def stream(self, topics: str, *, cursor: str | None = None) -> Iterator[Message]:
        """Events from `cursor` on, for ever: a broken line is taken up again where it broke."""
        failures = 0
        while True:
            try:
                for message in self._stream_once(topics, cursor):
                    failures, cursor = 0, message.cursor or cursor
                    yield message
            except httpx.TransportError as broken:
                failures += 1
                if failures >= TRIES * 2:
                    raise Unreachable(f"The stream of {self.url} broke and did not come back: {broken}") from broken
                time.sleep(_pause(failures))

    def _stream_once(self, topics: str, cursor: str | None) -> Iterator[Message]:
        timeout = httpx.Timeout(STREAM_SILENCE_S, connect=5.0)
        params = {"topics": topics} | ({"cursor": cursor} if cursor else {})
        with self._http.stream("GET", "/v1/stream", params=params, timeout=timeout) as answer:
            if answer.status_code != 200:
                answer.read()
                raise _error(answer)
            yield from parse_events(answer.iter_lines())

    # --- the wire

    def _get(self, path: str, shape: type[R], **params: Any) -> R:
        return _read(self._call("GET", path, params={k: v for k, v in params.items() if v is not None}), shape)

    def _post(self, path: str, shape: type[R], body: Any = None, key: UUID | None = None) -> R:
        return _read(self._call("POST", path, json=body, headers=_idempotent(key)), shape)

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request, tried again when the line or a proxy failed. Raises ServiceError or Unreachable."""
        for attempt in range(1, TRIES + 1):
            try:
                answer = self._http.request(method, path, **options)
            except httpx.TransportError as failure:
                if attempt == TRIES:
                    raise Unreachable(
                        f"{self.url} does not answer ({failure}). Is the service running? Type: shoestring up"
                    ) from failure
            else:
                if answer.status_code not in RETRY_STATUS or attempt == TRIES:
                    if answer.is_success:
                        return answer
                    raise _error(answer)
            time.sleep(_pause(attempt))
        raise AssertionError("unreachable")


@functools.cache
def certificates() -> ssl.SSLContext:
    """Whom TLS trusts; read once in a process, for it takes 25 ms of a core."""
    return httpx.create_ssl_context()


def parse_events(lines: Iterator[str]) -> Iterator[Message]:
    """Server-sent events (WHATWG HTML, 9.2) as messages; comments and unknown fields are skipped."""
    name, cursor = "message", None
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield Message(name, cursor, json.loads("\n".join(data)))
            name, data = "message", []
        elif line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("id:"):
            cursor = line[3:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))


def _idempotent(key: UUID | None) -> dict[str, str]:
    return {"Idempotency-Key": str(key or uuid.uuid4())}


def _pause(failures: int) -> float:
    return float(min(4.0, 0.2 * 2**failures) * random.uniform(0.5, 1.0))


def _check_address(url: str) -> None:
    try:
        address = httpx.URL(url)
        if address.scheme in ("http", "https") and address.host:
            return
    except httpx.InvalidURL:
        pass
    raise _refusal("not-shoestring", f"{url!r} is not the address of a service; it looks like http://127.0.0.1:8000")


def _check_key(key: str) -> None:
    if not key or not key.isascii() or not key.isprintable() or " " in key:  # none that a header could carry
        raise _refusal("unauthenticated", "This is not an API key: it is empty, or holds characters that no key has.")


def _read(answer: httpx.Response, shape: type[R]) -> R:
    try:
        return shape.model_validate_json(answer.content)
    except ValueError:
        raise _foreign(answer) from None


def _error(answer: httpx.Response) -> ServiceError:
    try:
        return ServiceError(rest.ProblemDocument.model_validate_json(answer.content))
    except ValueError:
        return _foreign(answer)


def _foreign(answer: httpx.Response) -> ServiceError:
    """What a proxy answered, or something that is not our service at all."""
    code = "unavailable" if answer.status_code >= 500 else "not-shoestring"
    words = f"{answer.request.url} answered {answer.status_code} and not as Shoestring does."
    return _refusal(code, words, answer.status_code)


def _refusal(code: str, detail: str, status: int = 0) -> ServiceError:
    """One that no service has said; without an answer the status is 0."""
    title = f"HTTP {status}" if status else "Not asked"
    return ServiceError(rest.ProblemDocument(type="about:blank", title=title, status=status, detail=detail, code=code))
