# SPDX-License-Identifier: Apache-2.0
"""`shoestring members` and `shoestring teams`: who works together, and what each may do."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Annotated

import typer
from shoestring_core.decide.access import ROLES
from shoestring_core.exit_codes import ExitCode
from shoestring_core.regular_files import read_regular_text
from shoestring_core.rest import Member

from shoestring.cli.terminal import (
    Json,
    Url,
    check_dollars,
    err,
    format_dollars,
    open_client,
    out,
    print_error,
    print_result,
    print_table,
)
from shoestring.client import Client, short_id

app = typer.Typer(
    help="""The members of your team and their roles.

\b
shoestring members ls
shoestring members invite --role viewer
""",
    no_args_is_help=True,
)
teams_app = typer.Typer(
    help="""The teams that you are a member of.

\b
shoestring teams ls
shoestring teams create speech
""",
    no_args_is_help=True,
)

User = Annotated[str, typer.Argument(metavar="USER", help="Name of the member.")]


@app.command("ls")
def list_members(url: Url = None, as_json: Json = False) -> None:
    """List the members of your team.

    With their roles, and how many valid API keys they have.

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
    role: Annotated[str, typer.Argument(metavar="ROLE", help=f"One of {', '.join(ROLES)}.")],
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
    """End a membership (admins).

    The member's keys and logins end at once. Jobs and their cost stay the team's.

    \b
    shoestring members remove ada
    """
    with open_client(url) as client:
        member = _find(client, user)
        client.remove_member(member.id)
    print_result(member, as_json, lambda: out.print(f"{member.user} is no longer a member"))


@app.command("invite")
def invite(
    role: Annotated[str, typer.Option("--role", help=f"One of {', '.join(ROLES)}.")] = "member",
    limit: Annotated[str | None, typer.Option("--limit", help="Dollars of their own budget; default: none.")] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=366, help="Days until it expires.")] = 14,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print a link by which one person joins your team (admins). It works once.

    \b
    shoestring members invite
    shoestring members invite --role viewer --days 2
    shoestring members invite --limit 5.00
    """
    if role not in ROLES:
        raise typer.BadParameter(f"{role!r} is none of {', '.join(ROLES)}", param_hint="--role")
    if limit is not None:
        check_dollars(limit)
    with open_client(url) as client:
        created = client.invite(role, limit=limit, expires_in_days=days)
        link = client.invitation_link(created)
    print_result(created, as_json, lambda: out.print(link))
    err.print(f"It makes one person a {role} of your team, once, until {created.invitation.expires_at:%Y-%m-%d}.")


@app.command("invitations")
def list_invitations(url: Url = None, as_json: Json = False) -> None:
    """List the team's newest invitations (admins).

    \b
    shoestring members invitations
    """
    with open_client(url) as client:
        invitations = client.invitations()
    rows = [
        (short_id(one.id), one.state, one.role, one.user or "", format_dollars(one.limit), one.made_by,
         f"{one.expires_at:%Y-%m-%d}")
        for one in invitations
    ]  # fmt: skip
    columns = ("ID", "STATE", "ROLE", "FOR", "LIMIT", "BY", "EXPIRES")
    print_result(invitations, as_json, lambda: print_table(columns, rows, "No invitations.", wrap=("FOR", "BY")))


@app.command("uninvite")
def revoke_invitation(
    invitation: Annotated[str, typer.Argument(metavar="ID", help="ID of the invitation, or the end of it.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Revoke an invitation (admins).

    \b
    shoestring members uninvite 1a2b3c4d
    """
    with open_client(url) as client:
        matching = [one for one in client.invitations() if str(one.id).endswith(invitation.lower())]
        if len(matching) != 1:
            found = "Several invitations end" if matching else "No invitation ends"
            print_error(f"{found} with {invitation}.", "List: shoestring members invitations")
            raise typer.Exit(ExitCode.NOT_FOUND)
        client.revoke_invitation(matching[0].id)
    print_result(matching[0], as_json, lambda: out.print(f"Revoked {matching[0].id}"))


@app.command("import")
def import_members(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE", help="CSV: name, role, limit.")],
    days: Annotated[int, typer.Option("--days", min=1, max=366, help="Days until the links expire.")] = 14,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Add a member for each line of a class list (admins).

    With their budgets; it prints a login link for each, as CSV. The first line names the columns: name, and optionally
    role (default: member) and limit (dollars). If a line is invalid, nobody is added. Each link signs its member in,
    once.

    \b
    shoestring members import class.csv > links.csv
    """
    try:
        text = read_regular_text(file, "utf-8-sig")
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{file} is not UTF-8 text; save it as CSV UTF-8", param_hint="FILE") from None
    with open_client(url) as client:
        created = client.import_members(text, expires_in_days=days)
        links = [(one.invitation.user or "", client.invitation_link(one)) for one in created]

    def print_links() -> None:
        writer = csv.writer(sys.stdout)
        writer.writerows([("name", "link"), *links])

    print_result(created, as_json, print_links)


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


@teams_app.command("create")
def create_team(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the team.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make another team of your organization (admins).

    It prints a key for it, which is shown only now. You are its admin. It may spend $10.00 until you set another limit.

    \b
    shoestring teams create speech
    """
    with open_client(url) as client:
        made = client.create_team(name)
        print_result(made, as_json, lambda: out.print(made.secret))
        address = client.url
    err.print(f"You are the admin of team {name}. Log in to it with this key: shoestring login {address} --key KEY")


def _find(client: Client, user: str) -> Member:
    for member in client.members():
        if member.user == user:
            return member
    print_error(f"{user} is no member of your team.", "List them: shoestring members ls")
    raise typer.Exit(ExitCode.NOT_FOUND)
