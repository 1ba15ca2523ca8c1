# SPDX-License-Identifier: Apache-2.0
"""Who may do what: every operation of the OpenAPI document × role × scope × {own, foreign, missing}.

The requests run in this process on one database, and none is committed, so that each finds what the first one found.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import closing
from dataclasses import dataclass, field
from json import dumps, loads
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
from shoestring_api.app import create_app
from shoestring_api.app_state import AppState
from shoestring_api.settings import ApiSettings
from shoestring_core import spec
from shoestring_core.decide import access
from shoestring_core.decide.access import Role, Scope
from shoestring_core.store import budget_requests, identity, invitations, jobs, ledger, sessions
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.identity import Principal
from shoestring_core.store.tables import AttemptRow, AuditEntryRow, MachineRow
from shoestring_core.store.transactions import Write
from shoestring_core.store.uuid7 import uuid7
from sqlalchemy import select
from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio

T = TypeVar("T")
DAY = 86_400_000_000
SPEC = {"recipe": "digits/quickstart", "resources": {"nodes": 1}}
DOCUMENT = Path(__file__).parents[2] / "web" / "openapi.json"
NO_ID = "00000000-0000-7000-8000-000000000000"
PARAMETERS = (
    "job_id",
    "budget_id",
    "request_id",
    "machine_id",
    "key_id",
    "session_id",
    "user_id",
    "to",
    "invitation_id",
)
MISSING = dict.fromkeys(PARAMETERS, NO_ID)

BODIES: dict[str, dict[str, Any]] = {
    "submit_job": {"spec": SPEC},
    "create_quote": {"spec": SPEC},
    "create_what_if": {"budgets": []},
    "ask": {"amount": "1.00", "why": "more seeds"},
    "set_limit": {"limit": "5.00"},
    "grant": {"amount": "1.00"},
    "transfer": {"amount": "0.01", "to": "{to}"},
    "set_weight": {"weight": 2},
    "set_guaranteed_rate": {"rate": "2.00"},
    "set_concurrency": {"max_jobs": 4, "max_gpus": None},
    "set_period": {"kind": "month"},
    "set_soft_lines": {"percents": [50]},
    "create_key": {"kind": "pat"},
    "create_team": {"name": "new team"},
    "set_role": {"role": "member"},
    "create_invitation": {"role": "viewer"},
    "import_members": {"csv": "name\nnew member\n"},
}
"""What each operation that needs a body is sent; {to} is replaced as a path's parameters are."""

ASKING = {"create_quote", "create_what_if", "read_invitation"}
"""Operations that are no GET, but change nothing."""

KEYS: list[tuple[Scope, ...] | None] = [None, *((scope,) for scope in access.SCOPES)]


class UncommittedStore(Store):
    """Every write runs to its end, and is then rolled back. `audited`: the actions that the last one recorded."""

    audited: tuple[str, ...] = ()

    def write(self, work: Callable[[Write], T], /, **_: bool) -> T:
        with self.writer.connect() as connection, closing(Write(connection)) as db:
            result = work(db)
            db.finish()
            self.audited = tuple(db.sql.scalars(select(AuditEntryRow.action)).all())
            return result


@dataclass
class Party:
    """A team's own things, by the name of the path parameter, and the keys of its members."""

    owned: dict[str, str]
    keys: dict[tuple[Role, tuple[Scope, ...] | None], str] = field(default_factory=dict)
    own_logins: dict[Role, dict[str, str]] = field(default_factory=dict)
    job_key: str = ""
    second_job: str = ""
    invitation: str = ""


@dataclass
class Answer:
    status_code: int = 0
    body: bytes = b""

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def is_success(self) -> bool:
        return 200 <= self.status_code < 300


@dataclass
class Matrix:
    app: ASGIApp
    ours: Party
    theirs: Party
    store: UncommittedStore

    async def send(self, method: str, path: str, key: str | None, json: Any = None) -> Answer:
        """As a server would call the application; thousands of requests by httpx take twice as long."""
        path, _, query = path.partition("?")
        headers = [(b"host", b"test"), (b"content-type", b"application/json")]
        headers += [(b"authorization", f"Bearer {key}".encode())] if key else []
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": headers, "client": ("10.0.0.1", 1), "server": ("test", 80), "state": {},
        }  # fmt: skip
        messages = [{"type": "http.request", "body": b"" if json is None else dumps(json).encode()}]
        answer = Answer()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await asyncio.Event().wait()  # the client stays connected
            raise AssertionError

        async def take(message: MutableMapping[str, Any]) -> None:
            answer.status_code = message.get("status", answer.status_code)
            answer.body += message.get("body", b"")

        await self.app(scope, receive, take)
        return answer

    def operations(self) -> Iterator[tuple[str, str, str]]:
        """Id, method, path."""
        for path, methods in loads(DOCUMENT.read_text())["paths"].items():
            for method, operation in methods.items():
                yield operation["operationId"], method.upper(), path

    async def ask(self, operation: str, method: str, path: str, key: str | None, things: dict[str, str]) -> Answer:
        """Things by the name of a path parameter; all of them are sent where the operation names one."""
        named = {"name": "model" if operation == "download_artifact" else "digits/quickstart", **things}
        if operation == "stream_events":  # a stream has no end
            return await self.send("HEAD", f"{path}?topics=job:{things['job_id']}", key)
        body = BODIES.get(operation)
        sent = body and {name: text.format(**named) if text == "{to}" else text for name, text in body.items()}
        return await self.send(method, path.format(**named), key, json=sent)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    folder = tmp_path_factory.mktemp("matrix")
    url = f"sqlite:///{folder / 'store.db'}"
    with closing(open_store(url)) as store:
        store.migrate()
        ours, theirs = party(store, "vision"), party(store, "speech")
        undone = UncommittedStore(store.reader, store.writer)
        settings = ApiSettings(
            database_url=url, secret="s", object_store=str(folder / "objects"), host="0.0.0.0", allowed_hosts="test"
        )
        yield Matrix(create_app(AppState.open(settings, undone)), ours, theirs, undone)


def party(store: Store, team: str) -> Party:
    ben, job, second = store.write(lambda db: submitted_jobs(db, team))
    return store.write(lambda db: own_things(db, team, ben, job, second))


def submitted_jobs(db: Write, team: str) -> tuple[Principal, UUID, UUID]:
    """A member and two jobs of theirs."""
    ben = identity.ensure_member(db, "lab", team, f"{team} ben")
    job, second = (jobs.submit(db, ben, spec.parse(SPEC), min_hold=0, sizing=None, init=None).job.id for _ in range(2))
    return ben, job, second


def own_things(db: Write, team: str, ben: Principal, job: UUID, second: UUID) -> Party:
    admin = identity.ensure_member(db, "lab", team, f"{team} admin", role="admin")
    cleo = identity.ensure_member(db, "lab", team, f"{team} cleo")
    budgets = [ledger.ensure_member_accounts(db, one.team, one.user)[0].id for one in (ben, cleo)]
    for budget in [*budgets, ledger.team_account(db, admin.team).id]:
        ledger.set_limit(db, budget, 2_000_000, actor="admin", reason="")
    request = budget_requests.ask(db, ben, 1_000_000, "more", budgets[0])
    invitation, code = invitations.invite(db, admin, "member", db.now + DAY)
    made = Party(
        {"job_id": str(job), "budget_id": str(budgets[0]), "to": str(budgets[1]), "request_id": str(request.id),
         "machine_id": str(machine(db, job)), "user_id": str(cleo.user),
         "invitation_id": str(invitation.id), **logins(db, ben)},
        second_job=str(second),
        invitation=code,
    )  # fmt: skip
    for role in access.ROLES:
        who = admin if role == "admin" else identity.ensure_member(db, "lab", team, f"{team} {role}", role=role)
        made.own_logins[role] = logins(db, who)
        for scopes in KEYS:
            made.keys[role, scopes] = identity.create_key(db, "pat", who, None, scopes=scopes)[1]
    made.job_key = identity.create_key(db, "job", ben, db.now + DAY, job=job)[1]
    return made


def logins(db: Write, who: Principal) -> dict[str, str]:
    """A key of theirs and a browser that they are signed in with."""
    key = identity.create_key(db, "pat", who, None)[0].id
    sessions.open_session(db, who)
    return {
        "key_id": str(key),
        "session_id": str(sessions.session_id(sessions.load_sessions(db, who.team, who.user)[0])),
    }


def machine(db: Write, job: UUID) -> UUID:
    id_ = uuid7()
    db.insert_new(AttemptRow, job=job, number=1, state="open", plan={}, plan_version=0, opened_at=db.now)
    db.insert_new(
        MachineRow, id=id_, job=job, attempt=1, ordinal=0, slot=0, provider="local", region="local", zone="",
        type="local.cpu", market="spot", price="0.158", on_demand_price="0.526", simulated=True, billing={},
        launch_request={}, state="planned", created_at=db.now,
    )  # fmt: skip
    return id_


# The rules


def test_every_operation_of_the_document_has_a_rule_and_no_other_has(matrix: Matrix) -> None:
    named = {operation for operation, _, _ in matrix.operations()}
    assert named == access.RULES.keys() | access.OPEN | access.MACHINES
    assert not (access.RULES.keys() & access.OPEN)
    assert not (access.RULES.keys() & access.MACHINES)


def test_only_looking_needs_no_more_than_to_look(matrix: Matrix) -> None:
    """What changes something needs another scope than `read`, and but for the caller's own logins a role."""
    for operation, method, _ in matrix.operations():
        rule = access.RULES.get(operation)
        if rule is None or method == "GET" or operation in ASKING:
            continue
        assert rule.scope != "read", operation
        assert rule.role != "viewer" or rule.scope in ("keys", None), operation


# The matrix


@pytest.mark.parametrize("role", access.ROLES)
async def test_each_operation_does_what_role_and_scope_allow_and_a_foreign_thing_answers_like_a_missing_one(
    matrix: Matrix, role: Role
) -> None:
    wrong = []
    for (operation, method, path), scopes in itertools.product(matrix.operations(), KEYS):
        if operation not in access.RULES:
            continue
        own = matrix.ours.owned | matrix.ours.own_logins[role]
        key = matrix.ours.keys[role, scopes]
        allowed = access.refusal(operation, role, scopes, job_key=False) is None
        targets = [own, matrix.theirs.owned, MISSING] if names_a_thing(operation, path) else [own]
        answers = [await matrix.ask(operation, method, path, key, things) for things in targets]
        seen = [content(answer) for answer in answers]
        if not allowed:
            fine = all(answer.status_code == 403 for answer in answers) and len(set(seen)) == 1
        elif len(seen) == 1:
            fine = answers[0].is_success
        else:
            fine = seen[0] != seen[2] and answers[0].status_code not in (401, 403) and seen[1] == seen[2]
            fine = fine and answers[2].status_code == 404
        if not fine:
            wrong.append((operation, scopes, allowed, [(answer.status_code, answer.text[:200]) for answer in answers]))
    assert not wrong, wrong


async def test_what_changes_something_is_in_the_audit_log_with_it(matrix: Matrix) -> None:
    """But for submitting, which jobs and their events tell, and quotes, which change nothing."""
    own = matrix.ours.owned | matrix.ours.own_logins["admin"]
    for operation, method, path in matrix.operations():
        if method == "GET" or operation in access.MACHINES | ASKING | {"submit_job", "retry_job", "preempt"}:
            continue
        matrix.store.audited = ()
        key = matrix.ours.keys["admin", None]
        secrets = {"sign_in": {"key": key}, "take_invitation": {"code": matrix.ours.invitation, "name": "dee"}}
        if operation in access.OPEN:
            answer = await matrix.send(method, path, None, json=secrets[operation])
        else:
            answer = await matrix.ask(operation, method, path, key, own)
        if answer.is_success and operation != "sign_out":  # a key has no browser to sign out
            assert matrix.store.audited == (operation,), operation


async def test_a_job_key_reaches_its_job_alone(matrix: Matrix) -> None:
    ours = matrix.ours
    for operation, method, path in matrix.operations():
        if operation not in access.RULES:
            continue
        targets = [ours.owned, {**ours.owned, "job_id": ours.second_job}, matrix.theirs.owned, MISSING]
        answers = [await matrix.ask(operation, method, path, ours.job_key, things) for things in targets]
        if not access.RULES[operation].job_key:
            assert {answer.status_code for answer in answers} == {403}, operation
        elif "{job_id}" in path:
            seen = [content(answer) for answer in answers]
            assert answers[0].status_code not in (401, 403), operation
            assert seen[1] == seen[2] == seen[3] != seen[0], operation
            assert answers[3].status_code == 404, operation
        else:
            assert answers[0].is_success, operation


async def test_without_a_key_nothing_but_the_open_operations_answers(matrix: Matrix) -> None:
    strange = "sst_pat_" + "0" * 36
    for operation, method, path in matrix.operations():
        if operation in access.OPEN:
            continue
        for key in (None, strange) if operation in access.RULES else (None, strange, matrix.ours.keys["admin", None]):
            answer = await matrix.ask(operation, method, path, key, MISSING)
            assert answer.status_code in ((401,) if operation in access.RULES else (401, 403, 422)), operation


async def test_a_foreign_thing_that_a_body_names_answers_like_a_missing_one(matrix: Matrix) -> None:
    async def sent(things: dict[str, str]) -> list[tuple[int, str]]:
        job, budget = things["job_id"], things["budget_id"]
        own = f"/v1/budgets/{matrix.ours.owned['budget_id']}:transfer"
        requests: list[tuple[str, dict[str, Any]]] = [
            ("/v1/budget-requests", {"amount": "1.00", "why": "more", "budget": budget}),
            (own, {"amount": "0.01", "to": things["to"]}),
            ("/v1/keys", {"kind": "job", "job": job}),
            ("/v1/jobs", {"spec": SPEC | {"init": f"job/{job}"}}),
        ]
        key = matrix.ours.keys["admin", None]
        return [content(await matrix.send("POST", path, key, json=body)) for path, body in requests]

    foreign, missing = await sent(matrix.theirs.owned), await sent(MISSING)
    assert foreign == missing
    assert [status for status, _ in missing] == [404] * 4


@pytest.mark.parametrize("role", access.ROLES)
async def test_only_an_admin_changes_the_budget_of_the_team(matrix: Matrix, role: Role) -> None:
    seen = await matrix.send("GET", "/v1/budgets", matrix.ours.keys["admin", None])
    budgets = loads(seen.body)["budgets"]
    team = next(budget["id"] for budget in budgets if budget["kind"] == "team")
    for operation, method, path in matrix.operations():
        if path.startswith("/v1/budgets/{budget_id}") and method != "GET" and operation != "transfer":
            answer = await matrix.ask(operation, method, path, matrix.ours.keys[role, None], {"budget_id": team})
            refused = (answer.status_code == 403) if role != "admin" else answer.status_code in (200, 409)
            assert refused, (operation, answer.text)


def names_a_thing(operation: str, path: str) -> bool:
    """Whether it is about something that a team owns: recipes are everybody's."""
    return bool(re.search(r"\{(?!name)\w+\}", path)) or operation == "stream_events"


def content(answer: Answer) -> tuple[int, str]:
    """Without ids and times, which differ."""
    return answer.status_code, re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", answer.text)
