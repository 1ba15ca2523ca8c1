# SPDX-License-Identifier: Apache-2.0
"""A local machine's first process: runs the agent, serves the metadata, keeps the journal, ends the process tree.

It lives in a session of its own and needs no machine host once it runs: a notice's deadline and the end are its own.
The host's orders lie as files in the machine's folder (SIGUSR1 tells of a new one), so none is lost with its sender.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from shoestring_trainer import processes
from shoestring_trainer.machinehost.journal import HEARTBEAT_S, Journal, end_cause, now_us, read_machine
from shoestring_trainer.machinehost.metadata import MetadataServer

GRACE_S = 5.0  # from SIGTERM to SIGKILL, unless the order says otherwise
LOOK_S = 0.5  # an order whose signal was lost with its sender is found this late
OWN_S = 10.0
SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD}
BOOT, USER_DATA, AGENT_LOG = "boot.json", "user-data", "agent.log"
STOP, RECLAIM = "stop.json", "reclaim.json"


def main() -> NoReturn:
    """Detach, then run the machine in this folder, unless it runs or has run already."""
    folder = Path(sys.argv[1])
    if os.fork():
        os._exit(0)  # the child belongs to nobody, so that it outlives the machine host and leaves it no zombie
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    deadline = time.monotonic() + OWN_S  # a host that looks after the machine may hold the journal for a moment
    while read_machine(folder).state == "pending" and time.monotonic() < deadline:
        if journal := Journal.own(folder):
            if read_machine(folder).state == "pending":  # still so, now that nobody else can write
                run(folder, journal)
            break
        time.sleep(0.01)
    os._exit(0)  # at once: the journal has said that the machine's last process is gone


def run(folder: Path, journal: Journal) -> None:
    """From start to end. The journal says `end` only after the last process is gone."""
    if read_order(folder, STOP):
        _note(journal, "stop")
        _write_end(journal, end_cause(noticed=False, stopped=True, code=None), None)
        return
    processes.become_subreaper()
    record = read_machine(folder)
    metadata = MetadataServer(record, (folder / USER_DATA).read_text())
    journal.append("start", {**asdict(processes.current_process()), "metadata": metadata.url})
    agent = _start_agent(folder, metadata.url)
    threading.Thread(target=metadata.serve_forever, daemon=True).start()
    _note(journal, "agent", asdict(agent))

    noticed = stopped = False
    asked: dict[str, Any] | None = None
    kill_at, beat_at = math.inf, time.monotonic() + HEARTBEAT_S
    while (code := _reap(agent.pid)) is None and time.monotonic() < kill_at:
        if time.monotonic() >= beat_at:
            beat_at = time.monotonic() + HEARTBEAT_S
            _note(journal, "heartbeat")
        if not noticed and (order := read_order(folder, RECLAIM)):
            noticed = True
            _note(journal, "notice", order)
            if order["notice_s"] > 0:  # else it is taken without a word
                metadata.record = replace(record, taken_at=order["taken_at"])
            kill_at = min(kill_at, _monotonic(order["taken_at"]))
        if order := read_order(folder, STOP) or asked:
            kill_at = min(kill_at, _monotonic(order["kill_at"]))  # a later order may hasten the end
            if not stopped:
                stopped = True
                _note(journal, "stop")
                agent.send_signal(signal.SIGTERM)
        if _wait(min(beat_at, kill_at, time.monotonic() + LOOK_S)) == signal.SIGTERM:
            asked = {"kill_at": now_us() + round(GRACE_S * 1e6)}

    code = _kill_tree(folder, agent.pid, code)
    _write_end(journal, end_cause(noticed=noticed, stopped=stopped, code=code), code)


def marks(folder: Path) -> dict[str, str]:
    """The variables by which every process of a machine is known, whatever its session or parent."""
    return {"SHOESTRING_MACHINE_ID": folder.name, "SHOESTRING_MACHINE_DIR": str(folder)}


def read_order(folder: Path, name: str) -> dict[str, Any] | None:
    """What the host ordered, or None. Orders appear whole, by rename."""
    try:
        order: dict[str, Any] = json.loads((folder / name).read_text())
    except FileNotFoundError:
        return None
    return order


def _start_agent(folder: Path, metadata_url: str) -> processes.Process:
    """Run the agent in its own session, to die with this init. A command that can't be run exits 127."""
    init = os.getpid()

    def prepare() -> None:
        processes.die_with_parent(init)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    command = json.loads((folder / BOOT).read_text())["command"]
    with (folder / AGENT_LOG).open("ab") as log:
        agent = subprocess.Popen(
            ["/bin/sh", "-c", 'exec "$@"', "sh", *command],
            cwd=folder,
            env={**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata_url},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509 - no second thread runs yet
        )
    agent.returncode = 0  # read by _reap, as all children are; keeps Popen from waiting for it as well
    return processes.identify(agent.pid)


def _reap(agent_pid: int) -> int | None:
    """Read every child that has ended (orphans come here too); the agent's exit code if it was among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == agent_pid:
            code = os.waitstatus_to_exitcode(status)


def _has_children() -> bool:
    """Certain for the whole tree: an orphan of a subreaper is its child."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _monotonic(at: int) -> float:
    """A moment of the calendar (µs) as a moment of the monotonic clock, as far apart from now."""
    return time.monotonic() + (at - now_us()) / 1e6


def _wait(until: float) -> int | None:
    """Sleep until a signal or this monotonic moment."""
    got = signal.sigtimedwait(SIGNALS, max(0.0, until - time.monotonic()))
    return got.si_signo if got else None


def _kill_tree(folder: Path, agent_pid: int, code: int | None) -> int | None:
    """Returns once every process of the machine is gone, with the agent's exit code."""
    me = processes.current_process()

    def rest() -> set[processes.Process]:
        return (processes.descendants(me.pid) | processes.with_environment(marks(folder))) - {me}

    def no_children() -> bool:
        nonlocal code
        ended = _reap(agent_pid)
        code = ended if ended is not None else code
        return not _has_children()

    while not processes.kill_all(rest, no_children=no_children, within_s=GRACE_S):
        sys.stderr.write(f"some processes do not die; trying on: {sorted(each.pid for each in rest())}\n")
    return code


def _note(journal: Journal, event: str, fields: dict[str, Any] | None = None) -> None:
    """A full disk must not stop a machine that could go on, nor save one that must end."""
    try:
        journal.append(event, fields)
    except OSError as error:
        sys.stderr.write(f"{event} not journaled: {error}\n")


def _write_end(journal: Journal, cause: str, code: int | None) -> None:
    """The end is the provider's word: it is tried until it is on the disk, with the moment at which it was true."""
    at = now_us()
    while True:
        try:
            journal.append("end", {"cause": cause, "code": code}, at=at)
            return
        except OSError as error:
            sys.stderr.write(f"end not journaled, trying again: {error}\n")
            time.sleep(1)


if __name__ == "__main__":
    main()
