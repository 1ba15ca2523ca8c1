# SPDX-License-Identifier: Apache-2.0
"""The command line of the local cloud: it rents out machines that are process trees on this computer.

python -m shoestring_trainer.machinehost --dir DIR [--port 0] [--slots N]
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from shoestring_trainer.machinehost.host import WATCH_INTERVAL_S, MachineHost
from shoestring_trainer.machinehost.http_server import HostServer
from shoestring_trainer.machinehost.machine_folder import write_json
from shoestring_trainer.rank_server.isolation import (
    ISOLATION_VARIABLE,
    PRIVATE_VARIABLE,
    Isolation,
    find_isolation,
)

log = logging.getLogger(__name__)

ADDRESS_FILE, LOCK_FILE = "machinehost.json", "machinehost.lock"
LOCK_TIMEOUT_S = 1.0  # an earlier host may still be exiting, when it and its parent were killed together


class FolderInUse(Exception):
    """Another machine host serves the folder."""


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit codes are those of sysexits.h; stderr says what failed and what to do."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parse_options(argv)
    try:
        folder = _lock_folder(options.dir)
    except OSError as error:
        path = f"{options.dir} ({error.strerror})"
        return _fail(os.EX_CANTCREAT, f"can't write to {path}: give --dir a writable folder with free disk space")
    except FolderInUse as error:
        return _fail(os.EX_TEMPFAIL, f"{error}: use that one, or stop it first, or give another --dir")
    try:
        server = HostServer(options.port)
    except OSError as error:
        address = f"127.0.0.1:{options.port} ({error.strerror})"
        return _fail(os.EX_UNAVAILABLE, f"can't listen on {address}: give another --port, or 0 for a free one")

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        isolation = _prepare_isolation(folder)
        server.host = MachineHost(folder, slots=options.slots, command=options.command)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        status = {"problem": isolation.problem, "remedy": isolation.remedy}
        description = {"url": server.url, "key": server.key, "pid": os.getpid(), "isolation": status}
        write_json(folder / ADDRESS_FILE, description)
    except OSError as error:
        return _fail(os.EX_CANTCREAT, f"can't write to {folder} ({error.strerror}): free disk space, then start again")
    if not isolation:
        log.warning("%s", isolation.warning())
    log.info("machine host ready at %s, slots: %s, folder: %s", server.url, options.slots, folder)
    while not stopping.wait(WATCH_INTERVAL_S):
        server.host.watch()
    if options.stop_machines_on_exit:
        server.host.stop_all()
    server.shutdown()
    return 0


def _parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m shoestring_trainer.machinehost", description="The local cloud.")
    parser.add_argument("--dir", type=Path, required=True, help="folder of the machines and their journals")
    parser.add_argument("--port", type=int, default=0, help="loopback port; default 0: a free one")
    parser.add_argument("--slots", type=int, default=max(2, os.cpu_count() or 1), help="maximum number of machines")
    parser.add_argument(
        "--stop-machines-on-exit", action="store_true", help="stop the machines first; for a container, which ends them"
    )
    options = parser.parse_args(argv)
    if options.slots < 1 or not 0 <= options.port <= 65535:
        parser.error("--slots must be at least 1, --port 0 to 65535")
    try:
        options.command = _agent_command(os.environ.get("SHOESTRING_AGENT_COMMAND"))
    except ValueError as error:
        parser.error(str(error))
    return options


def _agent_command(setting: str | None) -> list[str]:
    """The command that machines run: the agent, or SHOESTRING_AGENT_COMMAND, a JSON list of arguments."""
    if not setting:
        return [sys.executable, "-P", "-m", "shoestring_trainer", "agent"]
    command = json.loads(setting)
    if not (isinstance(command, list) and command and all(isinstance(argument, str) for argument in command)):
        raise ValueError('SHOESTRING_AGENT_COMMAND must be a JSON list of strings, such as ["python", "agent.py"]')
    return command


def _lock_folder(directory: Path) -> Path:
    """Create the folder and hold its lock as long as this process lives. Raises OSError or FolderInUse."""
    directory.mkdir(parents=True, exist_ok=True)
    folder = directory.resolve()
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)  # never closed: that would unlock it
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while not _try_lock(descriptor):
        if time.monotonic() > deadline:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"
            raise FolderInUse(f"another machine host (pid {holder}) serves {folder}")
        time.sleep(0.02)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    (folder / ADDRESS_FILE).unlink(missing_ok=True)  # an earlier host's
    (folder / "machines").mkdir(exist_ok=True)
    return folder


def _prepare_isolation(folder: Path) -> Isolation:
    """Find out whether ranks can be isolated; machines inherit the answer, and what ranks must not see."""
    private = (str(folder), os.environ.get(PRIVATE_VARIABLE))
    os.environ[PRIVATE_VARIABLE] = os.pathsep.join(filter(None, private))
    isolation = find_isolation(folder, os.environ)
    os.environ[ISOLATION_VARIABLE] = json.dumps(isolation.to_dict())
    return isolation


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fail(exit_code: int, message: str) -> int:
    log.error("machinehost: %s", message)
    return exit_code
