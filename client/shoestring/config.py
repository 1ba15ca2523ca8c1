# SPDX-License-Identifier: Apache-2.0
"""The service to talk to and the API key: from flags, then the environment, then the saved login."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_config_path, user_data_path
from shoestring_core import tls
from shoestring_core.regular_files import make_folder, read_regular_text, require_regular

from shoestring.connections import UnusableVariable


@dataclass(frozen=True)
class Login:
    url: str
    key: str
    source: str
    """Where the URL came from, for error messages."""
    ca: str = ""
    """The authority that signs the service's certificate, in PEM form; "": one that this computer knows."""


class NotLoggedIn(Exception):
    """No service or no API key is configured."""


def find_login(url: str | None = None, key: str | None = None) -> Login:
    """Return the login to use. A saved key is only sent to the service it was saved for.

    Raises NotLoggedIn with the command to type.
    """
    env_url, env_key = os.environ.get("SHOESTRING_URL"), os.environ.get("SHOESTRING_KEY")
    saved = _saved_login()
    for source, candidate in (
        ("the command line", url if url != env_url else None),  # commands take --url from the environment too
        ("the environment", env_url),
        (str(config_path()) if saved else "", saved.get("url")),
    ):
        if candidate:
            address = candidate.rstrip("/")
            found_key = key or env_key or (saved.get("key") if address == saved.get("url") else None)
            if not found_key:
                raise NotLoggedIn(f"{_damage()}No key for {address} (from {source}). Run: shoestring login {address}")
            ca = authority_of_environment() or (saved.get("ca", "") if address == saved.get("url") else "")
            return Login(address, found_key, source, ca)
    raise NotLoggedIn(f"{_damage()}No service is configured. Run: shoestring up  (or: shoestring login URL)")


def authority_of_environment() -> str:
    """The certificates of the file that SHOESTRING_CA names; "" if it is not set. Raises UnusableVariable."""
    if not (path := os.environ.get("SHOESTRING_CA")):
        return ""
    try:
        return tls.read_certificates(Path(path))
    except tls.BadCertificate as error:
        raise UnusableVariable(f"SHOESTRING_CA: {error} Correct it, or unset it.") from error


def save_login(url: str, key: str, ca: str = "") -> Path:
    """Save a login in a file that only the user can read. That of another service is kept beside it, to go back to."""
    path = config_path()
    make_folder(path.parent, 0o700)
    if (before := _saved_login()) and before.get("url") != url.rstrip("/"):
        write_private(_earlier_path(), json.dumps(before, indent=2) + "\n")
    write_private(path, json.dumps({"url": url.rstrip("/"), "key": key} | ({"ca": ca} if ca else {}), indent=2) + "\n")
    return path


def saved_url() -> str | None:
    """Return the service that commands use if nothing else is said."""
    return _saved_login().get("url")


def saved_key(url: str) -> str | None:
    """The key of the saved login, if it is of this service."""
    saved = _saved_login()
    return saved.get("key") if saved.get("url") == url.rstrip("/") else None


def earlier_login(url: str) -> Login | None:
    """The login that was saved before the present one, if it is of this service."""
    earlier = _saved_login(_earlier_path())
    if not earlier.get("key") or earlier.get("url") != url.rstrip("/"):
        return None
    return Login(earlier["url"], earlier["key"], str(_earlier_path()), earlier.get("ca", ""))


def config_path() -> Path:
    override = os.environ.get("SHOESTRING_CONFIG")
    return Path(override) if override else _user_folder(user_config_path, "SHOESTRING_CONFIG=FILE") / "login.json"


def default_data_folder() -> Path:
    override = os.environ.get("SHOESTRING_DATA")
    return Path(override) if override else _user_folder(user_data_path, "SHOESTRING_DATA=FOLDER")


def _user_folder(find: Callable[[str], Path], override: str) -> Path:
    try:
        return find("shoestring")
    except RuntimeError as unknown:
        raise OSError(None, f"This user has no home folder. Set HOME, or {override}") from unknown


def write_private(path: Path, content: str) -> None:
    """Write a file atomically that only its owner can read."""
    require_regular(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _earlier_path() -> Path:
    return config_path().with_suffix(".earlier.json")


def _damage() -> str:
    """What is wrong with the file of the saved login; "" if nothing is, or if there is none."""
    try:
        path = config_path()
    except OSError:  # no home folder, so none
        return ""
    try:
        read_regular_text(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"The saved login {path} can't be read: {error.strerror}. "
    except UnicodeDecodeError:
        pass
    return "" if _saved_login() else f"The saved login {path} is damaged. "


def _saved_login(path: Path | None = None) -> dict[str, str]:
    """What is there of a saved login, by default the present one; nothing if the file is damaged."""
    try:
        content = json.loads(read_regular_text(path or config_path()))
    except (OSError, ValueError, RecursionError):
        return {}
    is_login = isinstance(content, dict) and all(isinstance(value, str) for value in content.values())
    return content if is_login else {}
