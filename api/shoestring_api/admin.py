# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_api.admin`: what the operator of a service does in its database: first start, teams, members.

It needs SHOESTRING_DATABASE_URL. Each command may be repeated and prints JSON; a refusal goes to stderr, exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from shoestring_core import money
from shoestring_core.decide.access import ROLES
from shoestring_core.errors import ShoestringError, Unauthenticated
from shoestring_core.names import MAX_NAME, one_spelling
from shoestring_core.store import audit, identity, ledger, members, sessions, teams
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.tables import AccountRow
from shoestring_core.store.transactions import Write

DEFAULT_BUDGET = money.to_decimal(teams.NEW_TEAM_BUDGET)
"""Dollars. A service without a limit could spend without bound."""

EXAMPLES = """\
examples, for a service that was started with `shoestring up --data DIR`:
  export SHOESTRING_DATABASE_URL=sqlite:///DIR/store.db
  python -m shoestring_api.admin members
  python -m shoestring_api.admin add-member --team vision --user ada --role admin --key-file ada.key
  python -m shoestring_api.admin set-role --team vision --user ada --role member
  python -m shoestring_api.admin remove-member --team vision --user ada
"""


def main() -> int:
    options = _parse_arguments()
    database_url = os.environ.get("SHOESTRING_DATABASE_URL")
    if not database_url:
        print("Set SHOESTRING_DATABASE_URL to sqlite:///FILE or postgresql://USER@HOST/NAME.", file=sys.stderr)
        return 1
    try:
        print(json.dumps(run(database_url, options)))
    except (ShoestringError, ValueError, OSError) as refused:
        print(" ".join(filter(None, (str(refused), getattr(refused, "hint", None)))), file=sys.stderr)
        return 1
    return 0


def run(database_url: str, options: argparse.Namespace) -> Any:
    """Open the database and run the command; returns what to print. Raises ShoestringError, ValueError, OSError."""
    store = open_store(database_url)
    try:
        return options.run(store, options)
    finally:
        store.close()


# --- commands


def bootstrap(store: Store, options: argparse.Namespace) -> dict[str, str | None]:
    """Create the tables, the first team, its admin's API key, its budget, and a one-time login code.

    An older database is migrated, a newer one is refused, existing rows stay. So does a limit of the team, and that it
    has none, once anybody has set it. Prints the limit that holds: dollars, or null for none.
    """
    store.migrate()
    return store.write(lambda db: _bootstrap(db, options))


def list_members(store: Store, options: argparse.Namespace) -> list[dict[str, Any]]:
    """List the members of all teams, or of one: role, and how many valid API keys they have."""
    with store.read() as db:
        found = members.load_members(db, options.team)
    return [{"team": one.team, "user": one.user, "role": one.role, "keys": one.keys} for one in found]


def add_member(store: Store, options: argparse.Namespace) -> dict[str, str]:
    """Add a user to a team and write an API key of theirs to a file. A user or team that is missing is created.

    A member keeps their role. A valid key in the file stays; else they get a new one. A new team
    gets a limit of $10.00.
    """

    def work(db: Write) -> dict[str, str]:
        team_is_new = not members.load_members(db, options.team)
        member = identity.ensure_member(db, options.org, options.team, options.user, role=options.role)
        if team_is_new:
            _set_limit(db, member, teams.NEW_TEAM_BUDGET)
        _ensure_key(db, member, options.key_file)
        subject = audit.subject("member", options.user, member.user)
        audit.record(db, audit.Operator(member.team), "add_member", subject, role=member.role)
        return {"team": member.team_name, "user": member.user_name, "role": member.role}

    return store.write(work)


def set_role(store: Store, options: argparse.Namespace) -> dict[str, str]:
    """Change what a member may do in their team. An admin may do everything; the last one can't become less."""

    def work(db: Write) -> None:
        team, user = members.find_member(db, options.team, options.user)
        before = members.set_role(db, team, user, options.role)
        subject = audit.subject("member", options.user, user)
        audit.record(db, audit.Operator(team), "set_role", subject, before=before, after=options.role)

    store.write(work)
    return {"team": options.team, "user": options.user, "role": options.role}


def remove_member(store: Store, options: argparse.Namespace) -> dict[str, str]:
    """End a membership: the member's API keys, login links, sessions and open streams in the team end at once.

    Their jobs, and what these cost, stay the team's.
    """

    def work(db: Write) -> None:
        team, user = members.find_member(db, options.team, options.user)
        members.remove(db, team, user)
        audit.record(db, audit.Operator(team), "remove_member", audit.subject("member", options.user, user))

    store.write(work)
    return {"team": options.team, "removed": options.user}


# --- helpers


def _bootstrap(db: Write, options: argparse.Namespace) -> dict[str, str | None]:
    """Create the missing rows; return the admin's API key, which is also in `options.key_file`, a login code, and the
    team's limit."""
    first_limit = money.from_decimal(options.budget or DEFAULT_BUDGET)
    admin = identity.ensure_admin(db, options.org, options.team, options.user)
    team = ledger.team_account(db, admin.team)
    if not ledger.was_limited(db, team):
        team = _set_limit(db, admin, first_limit)
    key = _ensure_key(db, admin, options.key_file)
    limit = ledger.period_limit(team)
    return {
        "key": key,
        "code": sessions.create_login_code(db, identity.authenticate(db, key)),
        "limit": None if limit is None else money.to_decimal(limit),
    }


def _set_limit(db: Write, member: identity.Principal, limit: int) -> AccountRow:
    team = ledger.team_account(db, member.team)
    return ledger.set_limit(db, team.id, limit, actor=member.user_name, reason="set by the operator of the service")


def _ensure_key(db: Write, member: identity.Principal, file: Path) -> str:
    """The member's API key in the file; a new one is written to it unless it has a valid one."""
    try:
        key = file.read_text(encoding="utf-8").strip()
        holder = identity.authenticate(db, key)
        if (holder.user, holder.team) == (member.user, member.team):
            return key
    except (OSError, Unauthenticated):
        pass
    key = identity.create_key(db, "pat", member, None)[1]
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        os.fchmod(opened.fileno(), 0o600)  # a file that was there has its own mode
        opened.write(key + "\n")
    return key


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m shoestring_api.admin",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    first = _add_command(commands, "bootstrap", bootstrap)
    first.add_argument("--org", type=_name, default="home")
    first.add_argument("--team", type=_name, default="lab")
    first.add_argument("--user", type=_name, default="admin")
    first.add_argument("--budget", metavar="USD", help=f"the team's first limit; default: {DEFAULT_BUDGET}")
    first.add_argument("--key-file", type=Path, required=True, help="where the API key is kept")
    listing = _add_command(commands, "members", list_members)
    listing.add_argument("--team", type=_name)
    adding = _add_command(commands, "add-member", add_member)
    adding.add_argument("--org", type=_name, default="home", help="the organization of a new team; default: home")
    adding.add_argument("--key-file", type=Path, required=True, help="where the API key is written")
    adding.add_argument("--role", choices=ROLES, default="member")
    changing = _add_command(commands, "set-role", set_role)
    changing.add_argument("--role", choices=ROLES, required=True)
    for command in (adding, changing, _add_command(commands, "remove-member", remove_member)):
        command.add_argument("--team", type=_name, required=True)
        command.add_argument("--user", type=_name, required=True)
    return parser.parse_args()


def _add_command(commands: Any, name: str, run: Any) -> argparse.ArgumentParser:
    about = (run.__doc__ or "").strip()
    command: argparse.ArgumentParser = commands.add_parser(name, help=about.splitlines()[0], description=about)
    command.set_defaults(run=run)
    return command


def _name(text: str) -> str:
    if not text.strip() or len(text) > MAX_NAME or not text.isprintable():
        raise argparse.ArgumentTypeError(f"a name is 1 to {MAX_NAME} printable characters")
    return one_spelling(text)


if __name__ == "__main__":
    sys.exit(main())
