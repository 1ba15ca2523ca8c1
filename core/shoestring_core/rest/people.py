# SPDX-License-Identifier: Apache-2.0
"""Members, teams and invitations."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import Field

from shoestring_core.decide.access import Role
from shoestring_core.rest.base import Money, RequestBody, Resource
from shoestring_core.rest.sessions import Key


class Member(Resource):
    id: UUID
    user: str
    role: Role
    keys: int
    """Their valid API keys in the team."""


class MemberList(Resource):
    members: list[Member]


class SetRoleRequest(RequestBody):
    role: Role


class Team(Resource):
    id: UUID
    name: str
    role: Role
    """The caller's."""
    members: int
    current: bool
    """The one that this key acts in."""


class TeamList(Resource):
    teams: list[Team]


class CreateTeamRequest(RequestBody):
    """Body of POST /v1/teams."""

    name: str = Field(max_length=200)


class CreatedTeam(Resource):
    """A new team, and a key of its admin's. The secret is returned only here."""

    team: Team
    key: Key
    secret: str


class Invitation(Resource):
    """A link by which one person joins the team, without its secret."""

    id: UUID
    user: str | None
    """Of a class list: whom it signs in. None: the person who accepts it chooses a name."""
    role: Role
    limit: Money | None
    """What the new member's own budget begins with; None: no limit of their own."""
    made_by: str
    created_at: datetime
    expires_at: datetime
    state: Literal["open", "used", "expired", "revoked"]


class InvitationList(Resource):
    invitations: list[Invitation]


class CreateInvitationRequest(RequestBody):
    """Body of POST /v1/invitations. `limit`: decimal dollars of the new member's own budget."""

    role: Role = "member"
    limit: str | None = Field(default=None, max_length=100)
    expires_in_days: int = Field(default=14, ge=1, le=366)


class CreatedInvitation(Resource):
    invitation: Invitation
    code: str
    """Returned only here. Valid once, at `/login?invite=…`."""


class ReadInvitationRequest(RequestBody):
    """Body of POST /v1/invitations:read."""

    code: str = Field(max_length=200)


class OpenedInvitation(Resource):
    """What an invitation's link shows before the invitation is accepted."""

    team: str
    role: Role
    user: str | None
    """Whom it signs in; None: the person who accepts it chooses a name."""
    made_by: str
    expires_at: datetime


class TakeInvitationRequest(RequestBody):
    """Body of POST /v1/invitations:take."""

    code: str = Field(max_length=200)
    name: str | None = Field(default=None, max_length=200)
    """Of the new user. Of an invitation from a class list: theirs, or None."""


class ImportMembersRequest(RequestBody):
    """Body of POST /v1/members:import."""

    csv: str = Field(max_length=200_000)
    """Columns name, role, limit; the first line names those that there are."""
    expires_in_days: int = Field(default=14, ge=1, le=366)


class ImportedMembers(Resource):
    invitations: list[CreatedInvitation]
    """One for each member, in the order of the list."""
