# SPDX-License-Identifier: Apache-2.0
"""The members of the caller's team, and the teams that the caller is a member of."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter
from shoestring_core import rest
from shoestring_core.store import audit, identity, members, teams
from shoestring_core.store.transactions import Write

from shoestring_api.dependencies import Caller, ReadDep, StateDep
from shoestring_api.json_body import ExactJsonRoute
from shoestring_api.serializers.keys import serialize_key

DAY_US = 86_400_000_000
KEY_DAYS = 90
"""For which the key of a new team is valid."""

router = APIRouter(prefix="/v1", tags=["people"], route_class=ExactJsonRoute)


@router.get("/teams")
def list_teams(db: ReadDep, caller: Caller) -> rest.TeamList:
    """List the teams that the caller is a member of. A key acts in one of them."""
    return rest.TeamList(
        teams=[
            rest.Team(id=team.id, name=team.name, role=team.role, members=team.members, current=team.id == caller.team)
            for team in members.load_teams(db, caller.user)
        ]
    )


@router.post("/teams", status_code=201)
def create_team(body: rest.CreateTeamRequest, state: StateDep, caller: Caller) -> rest.CreatedTeam:
    """Make another team of the organization (admin), with the caller as its admin, and a key for it.

    It may spend $10.00 until one of its admins sets another limit. The key ends no later than the caller's.
    """

    def work(db: Write) -> rest.CreatedTeam:
        admin = teams.create(db, caller, body.name)
        key, secret = identity.create_key(db, "pat", admin, db.now + KEY_DAYS * DAY_US, name="made with the team")
        audit.record(db, caller, "create_team", audit.subject("team", admin.team_name, admin.team))
        made = rest.Team(id=admin.team, name=admin.team_name, role=admin.role, members=1, current=False)
        return rest.CreatedTeam(team=made, key=serialize_key(key), secret=secret)

    return state.store.write(work)


@router.get("/members")
def list_members(db: ReadDep, caller: Caller) -> rest.MemberList:
    """List the members of the caller's team."""
    found = members.load_members(db, caller.team_name)
    return rest.MemberList(
        members=[rest.Member(id=one.id, user=one.user, role=one.role, keys=one.keys) for one in found]
    )


@router.put("/members/{user_id}")
def set_role(user_id: UUID, body: rest.SetRoleRequest, state: StateDep, caller: Caller) -> rest.Member:
    """Change the role of a member (admin). The last admin of a team stays one."""

    def work(db: Write) -> rest.Member:
        before = members.set_role(db, caller.team, user_id, body.role)
        (changed,) = (one for one in members.load_members(db, caller.team_name) if one.id == user_id)
        audit.record(
            db, caller, "set_role", audit.subject("member", changed.user, user_id), before=before, after=body.role
        )
        return rest.Member(id=changed.id, user=changed.user, role=changed.role, keys=changed.keys)

    return state.store.write(work)


@router.delete("/members/{user_id}", status_code=204)
def remove_member(user_id: UUID, state: StateDep, caller: Caller) -> None:
    """End a membership (admin), and with it the member's keys and logins in the team. The last admin stays.

    Jobs and what they cost stay the team's.
    """

    def work(db: Write) -> None:
        removed = members.remove(db, caller.team, user_id)
        audit.record(db, caller, "remove_member", audit.subject("member", removed, user_id))

    state.store.write(work)
