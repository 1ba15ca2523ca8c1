# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_api.admin bootstrap`: create the tables, the first team, its admin's API key, its budget, and a
one-time login code.

Safe to repeat: an older database is migrated, a newer one is refused, existing rows stay, a given budget is set again.
Prints one JSON object: `{"key", "code"}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from shoestring_core import money
from shoestring_core.errors import ShoestringError, Unauthenticated
from shoestring_core.store import identity, ledger, sessions
from shoestring_core.store.db import Write, open_store

DEFAULT_BUDGET = "10.00"
"""Dollars. A service without a limit could spend without bound."""


def main() -> int:
    options = _parse_arguments()
    database_url = os.environ.get("SHOESTRING_DATABASE_URL")
    if not database_url:
        print("Set SHOESTRING_DATABASE_URL to sqlite:///FILE or postgresql://USER@HOST/NAME.", file=sys.stderr)
        return 1
    try:
        print(json.dumps(open_and_bootstrap(database_url, options)))
    except (ShoestringError, ValueError, OSError) as refused:
        print(" ".join(filter(None, (str(refused), getattr(refused, "hint", None)))), file=sys.stderr)
        return 1
    return 0


def open_and_bootstrap(database_url: str, options: argparse.Namespace) -> dict[str, str]:
    """Migrate the database to this version, then bootstrap it. Raises ShoestringError, ValueError."""
    store = open_store(database_url)
    try:
        store.migrate()
        return store.write(lambda db: bootstrap(db, options))
    finally:
        store.close()


def bootstrap(db: Write, options: argparse.Namespace) -> dict[str, str]:
    """Create the missing rows; return the admin's API key, which is also in `options.key_file`, and a login code."""
    admin = identity.ensure_admin(db, options.org, options.team, options.user)
    team = ledger.team_account(db, admin.team)
    if options.budget is not None or team.limit_micro is None:
        limit = money.from_decimal(options.budget or DEFAULT_BUDGET)
        if limit != team.limit_micro:
            ledger.set_limit(db, team.id, limit, actor=options.user, reason="set when the service was started")
    key = _read_valid_key(db, options.key_file)
    if key is None:
        key = identity.create_key(db, "pat", admin, None)[1]
        _write_key(options.key_file, key)
    return {"key": key, "code": sessions.create_login_code(db, identity.authenticate(db, key))}


def _read_valid_key(db: Write, file: Path) -> str | None:
    try:
        key = file.read_text(encoding="utf-8").strip()
        identity.authenticate(db, key)
    except (OSError, Unauthenticated):
        return None
    return key


def _write_key(file: Path, key: str) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(key + "\n")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m shoestring_api.admin", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("bootstrap")
    command.add_argument("--org", default="home")
    command.add_argument("--team", default="lab")
    command.add_argument("--user", default="admin")
    command.add_argument("--budget", metavar="USD")
    command.add_argument("--key-file", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
