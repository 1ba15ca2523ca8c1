# SPDX-License-Identifier: Apache-2.0
"""`shoestring members` and `shoestring teams`: who works together, and what each may do."""

from __future__ import annotations

from typing import Annotated

import typer
from shoestring_core.decide.access import ROLES
from shoestring_core.exit_codes import ExitCode
from shoestring_core.rest import Member

from shoestring.cli.terminal import Json, Url, open_client, out, print_error, print_result, print_table
from shoestring.client import Client

app = typer.Typer(help="The members of your team and their roles.", no_args_is_help=True)
teams_app = typer.Typer(help="The teams that you are a member of.", no_args_is_help=True)

User = Annotated[str, typer.Argument(help="Name of the member.")]


@app.command("ls")
def list_members(url: Url = None, as_json: Json = False) -> None:
    """List the members of your team: role, and how many valid API keys they have.

    \b
    shoestring members ls
    """
    with open_client(url) as client:
        members = client.members()
    rows = [(one.user, one.role, str(one.keys)) for one in members]
    print_result(members, as_json, lambda: print_table(("USER", "ROLE", "KEYS"), rows, "No members.", wrap=("USER",)))


@app.command("role")
def set_role(
    user: User,
    role: Annotated[str, typer.Argument(help=f"One of {', '.join(ROLES)}.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Change what a member may do (admins). The last admin of a team stays one.

    A viewer looks; a member runs jobs and asks for dollars; a lead also decides on the budgets of members; an admin
    does everything.

    \b
    shoestring members role ada lead
    """
    if role not in ROLES:
        raise typer.BadParameter(f"{role!r} is none of {', '.join(ROLES)}", param_hint="ROLE")
    with open_client(url) as client:
        changed = client.set_role(_find(client, user).id, role)
    print_result(changed, as_json, lambda: out.print(f"{changed.user} is now {changed.role}"))


@app.command("remove")
def remove(user: User, url: Url = None, as_json: Json = False) -> None:
    """End a membership (admins): the member's keys and logins end at once. Jobs and their cost stay the team's.

    \b
    shoestring members remove ada
    """
    with open_client(url) as client:
        member = _find(client, user)
        client.remove_member(member.id)
    print_result(member, as_json, lambda: out.print(f"{member.user} is no longer a member"))


@teams_app.command("ls")
def list_teams(url: Url = None, as_json: Json = False) -> None:
    """List your teams. Each has keys of its own: the one marked * is that of the key you are logged in with.

    \b
    shoestring teams ls
    """
    with open_client(url) as client:
        teams = client.teams()
    rows = [("*" if one.current else "", one.name, one.role, str(one.members)) for one in teams]
    columns = ("", "TEAM", "YOUR ROLE", "MEMBERS")
    print_result(teams, as_json, lambda: print_table(columns, rows, "No teams.", wrap=("TEAM",)))


def _find(client: Client, user: str) -> Member:
    for member in client.members():
        if member.user == user:
            return member
    print_error(f"{user} is no member of your team.", "List them: shoestring members ls")
    raise typer.Exit(ExitCode.NOT_FOUND)
