# SPDX-License-Identifier: Apache-2.0
"""The Python client, used by the command line, notebooks and scripts.

from shoestring import Client
job = Client("http://127.0.0.1:8000", key).submit("recipe: digits/quickstart")
job = client.wait(job.id)
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote
from uuid import UUID

import httpx
from shoestring_core import rest
from shoestring_core.decide.access import KeyKind, Role, Scope

from shoestring.connections import explain_distrust, open_http

TIMEOUT = httpx.Timeout(20.0, connect=5.0)
MAX_TRIES = 4
MAX_STREAM_TRIES = 8
"""In a row, until a stream counts as lost."""
MAX_BACKOFF_S = 4.0
MAX_OUTAGE_BACKOFF_S = 30.0
"""Between tries to take up a stream that is lost and waited for."""
RETRY_STATUS = frozenset({502, 503, 504})
STREAM_TIMEOUT_S = 45.0  # the service pings every 15 s: three missed pings mean a dead connection
LINE_END = re.compile(rb"\r\n|\n|\r")

R = TypeVar("R", bound=rest.Resource)


class ServiceError(Exception):
    """The service returned an error, as a problem document (RFC 9457)."""

    def __init__(self, problem: rest.ProblemDocument) -> None:
        super().__init__(problem.detail or problem.title)
        self.problem = problem

    @property
    def code(self) -> str:
        return self.problem.code


class ServiceUnreachable(Exception):
    """The service did not respond after all retries."""


@dataclass(frozen=True)
class StreamEvent:
    """One event of the live stream: `name` is one of rest.STREAM_EVENTS."""

    name: str
    cursor: str | None
    data: dict[str, Any] = field(default_factory=dict)


Lost = Callable[[str], None]
"""Told, in a sentence and once of each outage, that a stream is lost, which is then waited for, and that it is back."""


class Client:
    """A service and an API key. Reads are retried, and so are writes, which carry an Idempotency-Key.

    `ca`: the only authority that may sign the service's certificate, in PEM form; "": any that this computer knows.

    Raises ServiceError at once for an invalid URL or a malformed key, UnusableVariable for a proxy or a certificate
    of the environment that the connection needs and can't use.
    """

    def __init__(
        self, url: str, key: str, *, ca: str = "", transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.url, self._sleep = url.rstrip("/"), sleep
        _check_url(self.url)
        _check_key(key)
        self._http = open_http(
            self.url, ca, timeout=TIMEOUT, transport=transport, headers={"Authorization": f"Bearer {key}"}
        )

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

    def quote(self, spec: str | Mapping[str, Any], *, machine_counts: Sequence[int] = ()) -> rest.Quote:
        """Where the job would run, how long it takes and what it costs; nothing is stored.

        machine_counts  numbers of machines to compare, at most eight

        Raises what `submit` raises for a job that would be refused.
        """
        body = {"spec": spec if isinstance(spec, str) else dict(spec), "machine_counts": list(machine_counts)}
        return self._post("/v1/quotes", rest.Quote, body)

    def calibration(self) -> rest.Calibration:
        """How well the quotes of the team's newest jobs held."""
        return self._get("/v1/quotes/calibration", rest.Calibration)

    def queue(self) -> rest.Queue:
        """The team's queued jobs in the order of service."""
        return self._get("/v1/queue", rest.Queue)

    def what_if(self, request: rest.WhatIfRequest) -> rest.WhatIf:
        """The schedule to come, as things are and with the changes. Nothing is changed."""
        return self._post("/v1/what-ifs", rest.WhatIf, request.model_dump(mode="json"))

    def job(self, job: UUID | str) -> rest.Job:
        """Return the job."""
        return self._get(f"/v1/jobs/{job}", rest.Job)

    def jobs(self, *, filter: str = "", cursor: str | None = None, limit: int = 50) -> rest.JobPage:
        """Return a page of the team's jobs, newest first; `filter` is e.g. "status=running"."""
        return self._get("/v1/jobs", rest.JobPage, filter=filter or None, cursor=cursor, limit=limit)

    def stop(self, job: UUID | str) -> rest.Job:
        """End the job early; its last checkpoint stays."""
        return self._post(f"/v1/jobs/{job}:stop", rest.Job)

    def retry(self, job: UUID | str) -> rest.Job:
        """Submit the job again from its stored spec and its last checkpoint."""
        return self._post(f"/v1/jobs/{job}:retry", rest.Job)

    def resume(self, job: UUID | str) -> rest.Job:
        """Queue a paused job again from its last checkpoint. A job that has ended needs `retry`."""
        return self._post(f"/v1/jobs/{job}:resume", rest.Job)

    def wait(self, job: UUID | str, *, timeout_s: float | None = None, poll_s: float = 0.5) -> rest.Job:
        """Return the job once it has ended or paused. Raises TimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            current = self.job(job)
            if current.state in ("ended", "paused"):
                return current
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is still {current.state}: {current.status_text}")
            self._sleep(poll_s)

    def attempts(self, job: UUID | str) -> rest.AttemptList:
        """Return the job's attempts with their machines and generations."""
        return self._get(f"/v1/jobs/{job}/attempts", rest.AttemptList)

    def events(self, job: UUID | str, *, cursor: str | None = None) -> rest.EventPage:
        """Return a page of the job's events, oldest first; pass the page's cursor to get the next."""
        return self._get(f"/v1/jobs/{job}/events", rest.EventPage, cursor=cursor)

    def metrics(self, job: UUID | str, *, keys: str | None = None, attempts: str = "merged") -> rest.Metrics:
        """Return the job's curves; `keys` selects metrics by comma-separated names."""
        return self._get(f"/v1/jobs/{job}/metrics", rest.Metrics, keys=keys, attempts=attempts)

    def logs(
        self, job: UUID | str, *, cursor: str | None = None, tail: int | None = None, rank: int | None = None
    ) -> rest.Logs:
        """Return log lines; the last `tail` of them, or those after `cursor`; `rank` selects one rank's."""
        return self._get(f"/v1/jobs/{job}/logs", rest.Logs, cursor=cursor, tail=tail, rank=rank)

    def cost(self, job: UUID | str) -> rest.CostReport:
        """Return what the job has cost, with its ledger entries."""
        return self._get(f"/v1/jobs/{job}/cost", rest.CostReport)

    def artifacts(self, job: UUID | str) -> rest.ArtifactList:
        """Return the job's artifacts."""
        return self._get(f"/v1/jobs/{job}/artifacts", rest.ArtifactList)

    def download(self, artifact: rest.Artifact, target: Path) -> None:
        """Download an artifact to `target` atomically. Raises ServiceError for other content than the artifact's."""
        draft = target.with_name(f".{target.name}.part")
        try:
            for attempt in range(1, MAX_TRIES + 1):
                try:
                    digest = self._receive(artifact, draft)
                    break
                except httpx.RequestError as failure:
                    if attempt == MAX_TRIES:
                        message = f"{artifact.name} could not be downloaded from {self.url} ({failure}). Try again."
                        raise ServiceUnreachable(message) from failure
                self._sleep(_backoff_s(attempt))
            if digest != artifact.sha256:
                detail = f"{artifact.name} is not what the service says it is: its SHA-256 differs. Try again."
                raise _client_error("not-shoestring", detail, 200)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def _receive(self, artifact: rest.Artifact, draft: Path) -> str:
        """Write what the service sends to a new file; return its SHA-256. Raises ServiceError, httpx.RequestError."""
        draft.unlink(missing_ok=True)  # of a download that was killed
        digest = hashlib.sha256()
        with self._http.stream("GET", artifact.url) as response:
            if response.status_code != 200:
                response.read()
                raise _error(response)
            with draft.open("xb") as file:
                for block in response.iter_bytes():
                    digest.update(block)
                    file.write(block)
        return digest.hexdigest()

    def download_cached(
        self, artifact: rest.Artifact, folder: Path, *, before_download: Callable[[], None] = lambda: None
    ) -> Path:
        """Return the artifact's file in a cache folder, where it is named by its hash; download it if necessary."""
        target = folder / f"{artifact.sha256}-{artifact.name}"
        if not is_complete(artifact, target):
            folder.mkdir(parents=True, exist_ok=True)
            before_download()
            self.download(artifact, target)
        return target

    # --- budgets, recipes, login, machines

    def budgets(self) -> list[rest.Budget]:
        """Return the budgets that this key can see."""
        return self._get("/v1/budgets", rest.BudgetList).budgets

    def set_budget(self, budget: UUID | str, limit: str, *, reason: str = "", etag: str | None = None) -> rest.Budget:
        """Set the limit of a budget; with `etag`, only if the budget has not changed since it was read."""
        headers = {"If-Match": etag} if etag else {}
        response = self._call("PUT", f"/v1/budgets/{budget}", json={"limit": limit, "reason": reason}, headers=headers)
        return _parse(response, rest.Budget)

    def grant(self, budget: UUID | str, amount: str, *, reason: str = "") -> rest.Budget:
        """Add dollars to the limit of a budget."""
        body, headers = {"amount": amount, "reason": reason}, _idempotency_header(None)
        return _parse(self._call("POST", f"/v1/budgets/{budget}:grant", json=body, headers=headers), rest.Budget)

    def transfer(self, source: UUID | str, target: UUID | str, amount: str, *, reason: str = "") -> rest.Budget:
        """Move dollars that a budget has left to another below the same one. Returns the one that gave them."""
        body, headers = {"to": str(target), "amount": amount, "reason": reason}, _idempotency_header(None)
        return _parse(self._call("POST", f"/v1/budgets/{source}:transfer", json=body, headers=headers), rest.Budget)

    def ask_for_budget(self, amount: str, why: str, *, budget: UUID | str | None = None) -> rest.BudgetRequest:
        """Ask for more dollars: for your own limit or, without one, the team's; or for `budget`, one of these two."""
        body = {"amount": amount, "why": why, "budget": None if budget is None else str(budget)}
        response = self._call("POST", "/v1/budget-requests", json=body, headers=_idempotency_header(None))
        return _parse(response, rest.BudgetRequest)

    def budget_requests(self) -> list[rest.BudgetRequest]:
        """Return the team's newest requests for more dollars."""
        return self._get("/v1/budget-requests", rest.BudgetRequestList).requests

    def decide_budget_request(self, request: UUID | str, *, approve: bool, note: str = "") -> rest.BudgetRequest:
        """Approve or deny a request; the same decision again changes nothing."""
        path = f"/v1/budget-requests/{request}:{'approve' if approve else 'deny'}"
        return _parse(self._call("POST", path, json={"note": note}), rest.BudgetRequest)

    def export_ledger(self, format: Literal["csv", "json"], write: Callable[[bytes], object]) -> None:
        """Hand every line of the team's ledger to `write`, block by block. Not retried: a part may be written.

        Raises ServiceError, ServiceUnreachable.
        """
        try:
            with self._http.stream("GET", "/v1/ledger", params={"format": format}) as response:
                if response.status_code != 200:
                    response.read()
                    raise _error(response)
                for block in response.iter_bytes():
                    write(block)
        except httpx.TransportError as broken:
            raise ServiceUnreachable(f"The export from {self.url} was cut off ({broken}). Start it again.") from broken

    def forecast(self, budget: UUID | str) -> rest.BudgetForecast:
        """Return what a budget spent in its period, and will have spent at its end."""
        return self._get(f"/v1/budgets/{budget}/forecast", rest.BudgetForecast)

    def waste(self, days: int = 28) -> rest.WasteReport:
        """Return what the machines of the last days cost, and what of it was wasted, by cause."""
        return self._get(f"/v1/waste?days={days}", rest.WasteReport)

    def set_period(
        self, budget: UUID | str, kind: str, *, time_zone: str = "UTC", until: date | None = None,
        starts: date | None = None, rollover: str = "none", rollover_cap: str | None = None, reason: str = "",
    ) -> rest.Budget:  # fmt: skip
        """Make a budget monthly (`month`), end it with a `term`, whose last day is `until`, or make it `one_off`.

        starts        its first day, in the future; None: it begins now
        rollover      what a period leaves: it expires (`none`), or carries over (`unspent`)
        rollover_cap  decimal dollars that carry over at most
        """
        body = {
            "kind": kind, "time_zone": time_zone, "until": until and until.isoformat(),
            "starts": starts and starts.isoformat(), "rollover": rollover,
            "rollover_cap": rollover_cap, "reason": reason,
        }  # fmt: skip
        return _parse(self._call("PUT", f"/v1/budgets/{budget}/period", json=body), rest.Budget)

    def set_soft_lines(self, budget: UUID | str, percents: Sequence[int], *, reason: str = "") -> rest.Budget:
        """Set the shares of a limit, percent, at which the team is told that so much is spent or held."""
        body = {"percents": list(percents), "reason": reason}
        return _parse(self._call("PUT", f"/v1/budgets/{budget}/soft-lines", json=body), rest.Budget)

    def set_weight(self, budget: UUID | str, weight: int, *, reason: str = "") -> rest.Budget:
        """Set how a team's or member's share of the dollars compares with that of the others."""
        body = {"weight": weight, "reason": reason}
        return _parse(self._call("PUT", f"/v1/budgets/{budget}/weight", json=body), rest.Budget)

    def set_guaranteed_rate(self, budget: UUID | str, rate: str, *, reason: str = "") -> rest.Budget:
        """Set the dollars an hour that a team may use before it borrows from others."""
        body = {"rate": rate, "reason": reason}
        return _parse(self._call("PUT", f"/v1/budgets/{budget}/guaranteed-rate", json=body), rest.Budget)

    def set_concurrency(
        self, budget: UUID | str, max_jobs: int | None, max_gpus: int | None, *, reason: str = ""
    ) -> rest.Budget:
        """Set how many jobs of a team or member may run at once, and how many GPUs they may have; None: no cap."""
        body = {"max_jobs": max_jobs, "max_gpus": max_gpus, "reason": reason}
        return _parse(self._call("PUT", f"/v1/budgets/{budget}/concurrency", json=body), rest.Budget)

    def recipes(self) -> list[rest.Recipe]:
        """Return the recipes with their parameters."""
        return self._get("/v1/recipes", rest.RecipeList).recipes

    def offers(self, *, gpu: str | None = None, region: str | None = None) -> rest.OfferList:
        """Return what machines there are and what they cost, the cheapest first."""
        chosen = {name: value for name, value in (("gpu", gpu), ("region", region)) if value is not None}
        return self._get("/v1/offers", rest.OfferList, **chosen)

    def me(self) -> rest.Me:
        """Return the user, team and role of this key."""
        return self._get("/v1/me", rest.Me)

    # --- people and keys

    def teams(self) -> list[rest.Team]:
        """Return the teams that this key's user is a member of."""
        return self._get("/v1/teams", rest.TeamList).teams

    def create_team(self, name: str) -> rest.CreatedTeam:
        """Make another team of the organization (admins), and a key for it."""
        return _parse(self._call("POST", "/v1/teams", json={"name": name}), rest.CreatedTeam)

    def members(self) -> list[rest.Member]:
        """Return the members of the team."""
        return self._get("/v1/members", rest.MemberList).members

    def set_role(self, member: UUID | str, role: Role) -> rest.Member:
        """Change what a member may do (admins)."""
        return _parse(self._call("PUT", f"/v1/members/{member}", json={"role": role}), rest.Member)

    def remove_member(self, member: UUID | str) -> None:
        """End a membership, and with it the member's keys and logins (admins)."""
        self._call("DELETE", f"/v1/members/{member}")

    def invite(
        self, role: Role = "member", *, limit: str | None = None, expires_in_days: int = 14
    ) -> rest.CreatedInvitation:
        """Invite somebody to the team by a link (admins), see `invitation_link`. limit: dollars of their own budget."""
        body = {"role": role, "limit": limit, "expires_in_days": expires_in_days}
        return _parse(self._call("POST", "/v1/invitations", json=body), rest.CreatedInvitation)

    def invitations(self) -> list[rest.Invitation]:
        """Return the team's newest invitations (admins)."""
        return self._get("/v1/invitations", rest.InvitationList).invitations

    def revoke_invitation(self, invitation: UUID | str) -> None:
        """Revoke an invitation (admins)."""
        self._call("DELETE", f"/v1/invitations/{invitation}")

    def import_members(self, csv: str, *, expires_in_days: int = 14) -> list[rest.CreatedInvitation]:
        """Make a member of each line of a class list, all or none (admins); each is signed in by their invitation."""
        body = {"csv": csv, "expires_in_days": expires_in_days}
        return _parse(self._call("POST", "/v1/members:import", json=body), rest.ImportedMembers).invitations

    def invitation_link(self, created: rest.CreatedInvitation) -> str:
        """Return the link to send to whom is invited."""
        name = created.invitation.user
        return f"{self.url}/login?invite={created.code}" + (f"&name={quote(name, safe='')}" if name else "")

    def keys(self) -> list[rest.Key]:
        """Return the caller's API keys."""
        return self._get("/v1/keys", rest.KeyList).keys

    def create_key(
        self,
        kind: KeyKind = "pat",
        *,
        name: str = "",
        scopes: Sequence[Scope] | None = None,
        job: UUID | str | None = None,
        expires_in_days: int | None = 90,
    ) -> rest.CreatedKey:
        """Create an API key; its secret is in no other answer.

        scopes  None: those of this key; of a job key: read and jobs
        job     of a job key: the only job that it reaches
        """
        body = {
            "kind": kind, "name": name, "scopes": scopes and list(scopes), "job": job and str(job),
            "expires_in_days": expires_in_days,
        }  # fmt: skip
        return _parse(self._call("POST", "/v1/keys", json=body), rest.CreatedKey)

    def revoke_key(self, key: UUID | str) -> None:
        """Revoke an API key, and every key and login that was made with it."""
        self._call("DELETE", f"/v1/keys/{key}")

    def logins(self) -> list[rest.Login]:
        """Return the browsers that the caller is signed in with."""
        return self._get("/v1/sessions", rest.LoginList).logins

    def end_login(self, login: UUID | str) -> None:
        """Sign a browser out."""
        self._call("DELETE", f"/v1/sessions/{login}")

    def audit_entries(self, *, cursor: str | None = None, limit: int = 100) -> rest.AuditPage:
        """Return a page of the team's audit log, the newest entries first (admins)."""
        return self._get("/v1/audit", rest.AuditPage, cursor=cursor, limit=limit)

    def verify_audit_log(self) -> rest.AuditVerification:
        """Have the service compare the team's whole audit log with its hashes and its newest seal (admins)."""
        return self._get("/v1/audit/verification", rest.AuditVerification)

    def login_link(self) -> str:
        """Return a one-time link that signs a browser in."""
        return f"{self.url}/login?code={self._post('/v1/login-codes', rest.LoginCode).code}"

    def preempt(self, machine: UUID | str, *, notice_s: float = 120.0) -> rest.Machine:
        """Preempt a local machine as a spot provider would (admins)."""
        return self._post(f"/v1/machines/{machine}:preempt", rest.Machine, {"notice_s": notice_s})

    # --- live updates

    def stream(self, topics: str, *, cursor: str | None = None, lost: Lost | None = None) -> Iterator[StreamEvent]:
        """Yield events from `cursor` on, without end; after a lost connection, resume from the last event.

        Raises ServiceUnreachable where it can't be resumed for some seconds, unless `lost` is told instead.
        """
        failures = 0
        while True:
            why, received = "it ended", False
            try:
                for event in self._stream_once(topics, cursor):
                    if lost is not None and failures >= MAX_STREAM_TRIES:
                        lost(f"The connection to {self.url} is back.")
                    failures, cursor, received = 0, event.cursor or cursor, True
                    if event.name != "ping":
                        yield event
                if received:
                    continue
            except httpx.TransportError as broken:
                if distrust := explain_distrust(broken, self.url):
                    raise ServiceUnreachable(distrust) from broken
                why = str(broken) or type(broken).__name__
            except ServiceError as refused:
                if refused.problem.status not in RETRY_STATUS:
                    raise
                why = str(refused)
            failures += 1
            if failures == MAX_STREAM_TRIES:
                if lost is None:
                    raise ServiceUnreachable(f"The event stream of {self.url} was lost and could not be resumed: {why}")
                lost(f"The connection to {self.url} is lost ({why}). It is tried until it is back; jobs keep running.")
            self._sleep(_backoff_s(failures, MAX_BACKOFF_S if failures < MAX_STREAM_TRIES else MAX_OUTAGE_BACKOFF_S))

    def _stream_once(self, topics: str, cursor: str | None) -> Iterator[StreamEvent]:
        timeout = httpx.Timeout(STREAM_TIMEOUT_S, connect=5.0)
        params = {"topics": topics} | ({"cursor": cursor} if cursor else {})
        with self._http.stream("GET", "/v1/stream", params=params, timeout=timeout) as response:
            if response.status_code != 200:
                response.read()
                raise _error(response)
            yield from parse_events(stream_lines(response.iter_bytes()))

    # --- HTTP

    def _get(self, path: str, model: type[R], **params: Any) -> R:
        return _parse(self._call("GET", path, params={k: v for k, v in params.items() if v is not None}), model)

    def _post(self, path: str, model: type[R], body: Any = None, key: UUID | None = None) -> R:
        return _parse(self._call("POST", path, json=body, headers=_idempotency_header(key)), model)

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request; retry after connection errors and 502 to 504. Raises ServiceError or ServiceUnreachable."""
        for attempt in range(1, MAX_TRIES + 1):
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as failure:
                if distrust := explain_distrust(failure, self.url):
                    raise ServiceUnreachable(distrust) from failure
                if attempt == MAX_TRIES:
                    raise ServiceUnreachable(
                        f"{self.url} does not answer ({failure}). Is the service running? "
                        "Start it as before, with its --data and --port: shoestring up"
                    ) from failure
            else:
                if response.status_code not in RETRY_STATUS or attempt == MAX_TRIES:
                    if response.is_success:
                        return response
                    raise _error(response)
            self._sleep(_backoff_s(attempt))
        raise AssertionError("unreachable")


def redeem_code(url: str, ca: str, code: str) -> str:
    """Exchange a one-time login code for an API key. Raises ServiceError, ServiceUnreachable."""
    with open_http(url, ca, timeout=TIMEOUT) as http:
        try:
            session = http.post("/v1/session", json={"code": code})
            if not session.is_success:
                raise _error(session)
            headers = {"X-CSRF-Token": _parse(session, rest.Me).csrf or "", **_idempotency_header(None)}
            created = http.post("/v1/keys", json={"kind": "pat"}, headers=headers)
        except httpx.TransportError as failure:
            why = explain_distrust(failure, url) or f"{url} does not answer ({failure})."
            raise ServiceUnreachable(why) from failure
    if not created.is_success:
        raise _error(created)
    return _parse(created, rest.CreatedKey).secret


def is_accepted(url: str, key: str, ca: str) -> bool:
    """Whether the service takes this key. Raises ServiceUnreachable, ServiceError for any other refusal."""
    try:
        with Client(url, key, ca=ca) as client:
            client.me()
    except ServiceError as error:
        if error.problem.status == 401:
            return False
        raise
    return True


def is_complete(artifact: rest.Artifact, path: Path) -> bool:
    """Whether `path` is a file with the artifact's content."""
    if not path.is_file() or path.stat().st_size != artifact.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == artifact.sha256


def short_id(job: UUID | str) -> str:
    """The characters by which jobs are shown: the last ones, because jobs of one time begin alike."""
    return str(job)[-8:]


def stream_lines(blocks: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of an event stream, which CR, LF or CRLF end, but no other line separator of Unicode."""
    unfinished, after_cr = b"", False
    for block in blocks:
        received = block.removeprefix(b"\n") if after_cr else block
        after_cr = block.endswith(b"\r")
        *lines, unfinished = LINE_END.split(unfinished + received)
        for line in lines:
            yield line.decode(errors="replace")


def parse_events(lines: Iterator[str]) -> Iterator[StreamEvent]:
    """Parse server-sent events (WHATWG HTML, 9.2); comments and unknown fields are skipped."""
    name, cursor = "message", None
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield StreamEvent(name, cursor, json.loads("\n".join(data)))
            name, data = "message", []
        elif line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("id:"):
            cursor = line[3:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))


def _idempotency_header(key: UUID | None) -> dict[str, str]:
    return {"Idempotency-Key": str(key or uuid.uuid4())}


def _backoff_s(failures: int, most: float = MAX_BACKOFF_S) -> float:
    return min(most, 0.2 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)


def _check_url(url: str) -> None:
    try:
        address = httpx.URL(url)
        if address.scheme in ("http", "https") and address.host:
            return
    except httpx.InvalidURL:
        pass
    raise _client_error("not-shoestring", f"{url!r} is not the URL of a service; expected e.g. http://127.0.0.1:8000")


def _check_key(key: str) -> None:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise _client_error("unauthenticated", "This is not an API key: it is empty or contains invalid characters.")


def _parse(response: httpx.Response, model: type[R]) -> R:
    try:
        return model.model_validate_json(response.content)
    except ValueError:
        raise _unexpected_response(response) from None


def _error(response: httpx.Response) -> ServiceError:
    try:
        return ServiceError(rest.ProblemDocument.model_validate_json(response.content))
    except ValueError:
        return _unexpected_response(response)


def _unexpected_response(response: httpx.Response) -> ServiceError:
    """The error for a response of a proxy, or of another server."""
    code = "unavailable" if response.status_code >= 500 else "not-shoestring"
    detail = f"{response.request.url} answered {response.status_code}, but not as a Shoestring service would."
    return _client_error(code, detail, response.status_code)


def _client_error(code: str, detail: str, status: int = 0) -> ServiceError:
    """An error found by the client itself; the status is 0 if there was no response."""
    title = f"HTTP {status}" if status else "No request was sent"
    return ServiceError(rest.ProblemDocument(type="about:blank", title=title, status=status, detail=detail, code=code))
