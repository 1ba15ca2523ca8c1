# SPDX-License-Identifier: Apache-2.0
"""Who may do what: for each operation of the API the scope that a key needs, and the least role that a member needs.

Roles are ordered: each may do what those before it may. A key, and a browser that was signed in with it, may do what
its member may, as far as its scopes go. A job key reads and stops one job, and reaches nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["viewer", "member", "lead", "admin"]
"""viewer: looks; member: runs jobs, asks for dollars; lead: decides on the budgets of members; admin: everything."""

Scope = Literal["read", "jobs", "budgets", "keys", "people"]
"""read: everything the team sees; jobs: submit and stop; budgets: ask, grant, limit; keys: the caller's own keys and
logins; people: members, their invitations, the audit log."""

KeyKind = Literal["pat", "svc", "job"]
"""Personal, service, job: a job key is bound to one job."""

Refusal = Literal["role", "scope", "job_key"]

ROLES: tuple[Role, ...] = get_args(Role)
SCOPES: tuple[Scope, ...] = get_args(Scope)
JOB_KEY_SCOPES: frozenset[Scope] = frozenset({"read", "jobs"})


@dataclass(frozen=True)
class Rule:
    """What an operation needs.

    scope    None: any key will do
    role     the least one
    job_key  a job key may do it, to its own job
    """

    scope: Scope | None
    role: Role = "viewer"
    job_key: bool = False


_LOOK, _LOOK_AT_JOB = Rule("read"), Rule("read", job_key=True)
_OWN_LOGINS = Rule("keys")
_RUN_JOBS, _STOP_JOB = Rule("jobs", "member"), Rule("jobs", "member", job_key=True)
_ASK, _BUDGETS = Rule("budgets", "member"), Rule("budgets", "lead")
_PEOPLE = Rule("people", "admin")

RULES: Mapping[str, Rule] = {
    "get_me": Rule(None, job_key=True),
    "sign_out": Rule(None),
    # jobs
    "list_jobs": _LOOK,
    "get_job": _LOOK_AT_JOB,
    "list_attempts": _LOOK_AT_JOB,
    "list_events": _LOOK_AT_JOB,
    "get_metrics": _LOOK_AT_JOB,
    "get_logs": _LOOK_AT_JOB,
    "get_cost": _LOOK_AT_JOB,
    "list_artifacts": _LOOK_AT_JOB,
    "download_artifact": _LOOK_AT_JOB,
    "stream_events": _LOOK,
    "create_quote": _LOOK,
    "get_calibration": _LOOK,
    "get_queue": _LOOK,
    "create_what_if": _LOOK,
    "submit_job": _RUN_JOBS,
    "stop_job": _STOP_JOB,
    "retry_job": _RUN_JOBS,
    "resume_job": _RUN_JOBS,
    "preempt": Rule("jobs", "admin"),
    # budgets
    "list_budgets": _LOOK,
    "get_budget": _LOOK,
    "get_forecast": _LOOK,
    "get_waste": _LOOK,
    "export_ledger": _LOOK,
    "list_requests": _LOOK,
    "ask": _ASK,
    "approve": _BUDGETS,
    "deny": _BUDGETS,
    "set_limit": _BUDGETS,
    "grant": _BUDGETS,
    "transfer": _BUDGETS,
    "set_weight": _BUDGETS,
    "set_concurrency": _BUDGETS,
    "set_guaranteed_rate": Rule("budgets", "admin"),
    "set_period": _BUDGETS,
    "set_soft_lines": _BUDGETS,
    # what there is to run, and how the service does
    "list_recipes": _LOOK,
    "get_recipe": _LOOK,
    "list_offers": _LOOK,
    "metrics": _LOOK,
    # people
    "list_keys": _OWN_LOGINS,
    "create_key": _OWN_LOGINS,
    "revoke_key": _OWN_LOGINS,
    "create_login_code": _OWN_LOGINS,
    "list_sessions": _OWN_LOGINS,
    "end_session": _OWN_LOGINS,
    "list_teams": _LOOK,
    "create_team": _PEOPLE,
    "list_members": _LOOK,
    "set_role": _PEOPLE,
    "remove_member": _PEOPLE,
    "import_members": _PEOPLE,
    "list_invitations": _PEOPLE,
    "create_invitation": _PEOPLE,
    "revoke_invitation": _PEOPLE,
    "list_audit_entries": _PEOPLE,
    "verify_audit_log": _PEOPLE,
}
"""By operation id of the OpenAPI document. One that is not here fails: a test compares the two."""

OPEN = frozenset({"healthz", "readyz", "sign_in", "read_invitation", "take_invitation"})
"""Operations that need no key; `sign_in` and those of an invitation take a secret in their body."""

MACHINES = frozenset(
    {"report_boot", "get_wheelhouse", "register", "report", "get_orders", "start_upload", "commit_checkpoint"}
)
"""Operations of rented machines, which have sessions of their own: no key of a member opens them."""


def refusal(operation: str, role: Role, scopes: Collection[Scope] | None, *, job_key: bool) -> Refusal | None:
    """Why the operation is refused; None: it is allowed. scopes: of the key; None: all."""
    rule = RULES[operation]
    if job_key and not rule.job_key:
        return "job_key"
    if rule.scope is not None and scopes is not None and rule.scope not in scopes:
        return "scope"
    if not is_at_least(role, rule.role):
        return "role"
    return None


def is_at_least(role: Role, least: Role) -> bool:
    return ROLES.index(role) >= ROLES.index(least)


def may_raise_budget(role: Role, kind: str, *, own: bool) -> bool:
    """Whether a member may give dollars to a budget: what a lead gets themselves, another lead or an admin decides.

    own  it is the caller's own budget, or they are who asked
    """
    return is_at_least(role, budget_role(kind)) and (role == "admin" or not own)


def budget_role(kind: str) -> Role:
    """The least role that changes a budget of this kind: a lead shares out what the team may spend."""
    return "lead" if kind in ("member", "job") else "admin"
