# SPDX-License-Identifier: Apache-2.0
"""Invitations by link, and class lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, cast
from uuid import UUID

from fastapi import APIRouter, Request, Response
from shoestring_core import rest
from shoestring_core.decide.access import Role
from shoestring_core.store import audit, invitations, members, sessions
from shoestring_core.store.tables import InvitationRow
from shoestring_core.store.transactions import Read, Write

from shoestring_api.dependencies import Caller, ReadDep, StateDep
from shoestring_api.json_body import ExactJsonRoute
from shoestring_api.routes.auth import DAY_US, place_of, serialize_me, set_session_cookie
from shoestring_api.routes.budgets import parse_amount
from shoestring_api.serializers.times import to_datetime

router = APIRouter(prefix="/v1", tags=["people"], route_class=ExactJsonRoute)


@router.get("/invitations")
def list_invitations(db: ReadDep, caller: Caller) -> rest.InvitationList:
    """List the newest 200 invitations of the team (admin)."""
    rows = invitations.load_invitations(db, caller.team)
    names = {one.id: one.user for one in members.load_members(db, caller.team_name)}
    return rest.InvitationList(invitations=[_serialize(db, row, names) for row in rows])


@router.post("/invitations", status_code=201)
def create_invitation(body: rest.CreateInvitationRequest, state: StateDep, caller: Caller) -> rest.CreatedInvitation:
    """Invite somebody to the team (admin), by a link that works once: `/login?invite=CODE`."""
    limit = None if body.limit is None else parse_amount(body.limit)

    def work(db: Write) -> rest.CreatedInvitation:
        ends_at = db.now + body.expires_in_days * DAY_US
        row, code = invitations.invite(db, caller, body.role, ends_at, limit_micro=limit)
        audit.record(db, caller, "create_invitation", f"invitation {row.id}", role=body.role, limit=body.limit)
        return rest.CreatedInvitation(invitation=_serialize(db, row, {}), code=code)

    return state.store.write(work)


@router.delete("/invitations/{invitation_id}", status_code=204)
def revoke_invitation(invitation_id: UUID, state: StateDep, caller: Caller) -> None:
    """Revoke an invitation (admin). One that was used stays used."""

    def work(db: Write) -> None:
        invitations.revoke(db, caller.team, invitation_id)
        audit.record(db, caller, "revoke_invitation", f"invitation {invitation_id}")

    state.store.write(work)


@router.post("/invitations:read")
def read_invitation(body: rest.ReadInvitationRequest, db: ReadDep) -> rest.OpenedInvitation:
    """Say what an invitation is for, to whom has its link. Nothing is taken by it."""
    row, team, user = invitations.read(db, body.code.strip())
    role, expires_at = cast("Role", row.role), to_datetime(row.expires_at)
    return rest.OpenedInvitation(team=team, role=role, user=user, made_by=row.made_by, expires_at=expires_at)


@router.post("/invitations:take")
def take_invitation(body: rest.TakeInvitationRequest, state: StateDep, request: Request, response: Response) -> rest.Me:
    """Join the team that an invitation is for, and sign the browser in: sets a same-site session cookie."""
    place = place_of(request)

    def work(db: Write) -> tuple[sessions.NewSession, rest.Me]:
        taker, signed_in = invitations.take(db, body.code.strip(), body.name, place)
        who = replace(sessions.authenticate(db, signed_in.secret), address=place.address)
        audit.record(db, who, "take_invitation", audit.subject("member", taker.user_name, taker.user), role=taker.role)
        return signed_in, serialize_me(db, who)

    signed_in, me = state.store.write(work)
    set_session_cookie(state, request, response, signed_in)
    return me


@router.post("/members:import", status_code=201)
def import_members(body: rest.ImportMembersRequest, state: StateDep, caller: Caller) -> rest.ImportedMembers:
    """Make a member with a budget of each line of a class list (admin), all or none, and an invitation for each.

    Columns: name, and optionally role and limit (dollars). Each invitation signs its member in, once.
    """

    def work(db: Write) -> rest.ImportedMembers:
        ends_at = db.now + body.expires_in_days * DAY_US
        made = []
        for member, row, code in invitations.import_members(db, caller, body.csv, ends_at):
            assert row.user_id is not None
            subject = audit.subject("member", member.name, row.user_id)
            audit.record(db, caller, "import_members", subject, role=member.role, limit_micro=member.limit_micro)
            made.append(rest.CreatedInvitation(invitation=_serialize(db, row, {row.user_id: member.name}), code=code))
        return rest.ImportedMembers(invitations=made)

    return state.store.write(work)


def _serialize(db: Read, row: InvitationRow, names: Mapping[UUID, str]) -> rest.Invitation:
    return rest.Invitation(
        id=row.id,
        user=None if row.user_id is None else names.get(row.user_id),
        role=cast("Role", row.role),
        limit=None if row.limit_micro is None else rest.Money.of(row.limit_micro),
        made_by=row.made_by,
        created_at=to_datetime(row.created_at),
        expires_at=to_datetime(row.expires_at),
        state=_state(row, db.now),
    )


def _state(row: InvitationRow, now: int) -> Literal["open", "used", "expired", "revoked"]:
    if row.used_at is not None:
        return "used"
    if row.revoked_at is not None:
        return "revoked"
    return "open" if row.expires_at > now else "expired"
