# SPDX-License-Identifier: Apache-2.0
"""Which service to talk to, and as whom: flags, then environment, then the saved login."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_config_path, user_data_path


@dataclass(frozen=True)
class Login:
    url: str
    key: str
    source: str
    """Where it was found, for `shoestring login --show` and for error messages."""


class NotLoggedIn(Exception):
    """No service is known."""


def find_login(url: str | None = None, key: str | None = None) -> Login:
    """The login in force. A saved key is told to the service it was saved for only.

    Raises NotLoggedIn with what to type next.
    """
    env_url, env_key = os.environ.get("SHOESTRING_URL"), os.environ.get("SHOESTRING_KEY")
    saved = _read(config_path())
    for source, found_url in (
        ("the command line", url),
        ("the environment", env_url),
        (str(config_path()), saved.get("url")),
    ):
        if found_url:
            address = found_url.rstrip("/")
            chosen = key or env_key or (saved.get("key") if address == saved.get("url") else None)
            if not chosen:
                raise NotLoggedIn(f"No key for {address} (from {source}). Type: shoestring login {address}")
            return Login(address, chosen, source)
    raise NotLoggedIn("No service is known yet. Type: shoestring up  (or: shoestring login URL)")


def save_login(url: str, key: str) -> Path:
    """Remember a login, readable by its owner only."""
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, json.dumps({"url": url.rstrip("/"), "key": key}, indent=2) + "\n")
    return path


def config_path() -> Path:
    override = os.environ.get("SHOESTRING_CONFIG")
    return Path(override) if override else user_config_path("shoestring") / "login.json"


def default_data() -> Path:
    override = os.environ.get("SHOESTRING_DATA")
    return Path(override) if override else user_data_path("shoestring")


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
