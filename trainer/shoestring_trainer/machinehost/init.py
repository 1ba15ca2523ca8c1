# SPDX-License-Identifier: Apache-2.0
"""A local machine's first process: runs the agent, serves metadata, writes the journal and kills the process tree.

It runs in its own session and does not need the machine host: it enforces the deadline of a preemption notice itself.
The host's requests are files in the machine's folder (SIGUSR1 announces a new one), so none is lost if the host dies.
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
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from shoestring_trainer import processes
from shoestring_trainer.agent.launch_env import SHARED_VARIABLE
from shoestring_trainer.machinehost import internet
from shoestring_trainer.machinehost.clock import boottime
from shoestring_trainer.machinehost.journal import HEARTBEAT_S, Journal, classify_end, read_machine
from shoestring_trainer.machinehost.machine_folder import (
    ADDRESS_FILE,
    AGENT_LOG,
    BOOT_FILE,
    PREEMPT_FILE,
    REBALANCE_FILE,
    STOP_FILE,
    USER_DATA_FILE,
    machine_environment,
    read_request,
)
from shoestring_trainer.machinehost.metadata import MetadataServer
from shoestring_trainer.machinehost.namespaces import first_process_next, inside
from shoestring_trainer.machinehost.network import Bridge, reach_computer
from shoestring_trainer.machinehost.user_data import has_powered_off, is_script, script_environment

GRACE_S = 5.0  # from SIGTERM to SIGKILL, unless the request says otherwise
POLL_INTERVAL_S = 0.5  # a request whose signal was lost because the host died is read this late
START_TIMEOUT_S = 10.0
FIRST_PROCESS = "shoestring_trainer.machinehost.first_process"
METADATA_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD}


def main() -> NoReturn:
    """Detach, then run the machine of this folder, unless it runs or has run already."""
    folder, bridge = Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else None
    if os.fork():
        os._exit(0)  # the orphan outlives the machine host and does not become its zombie
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    deadline = time.monotonic() + START_TIMEOUT_S  # a host that checks the machine may hold the lock for a moment
    while read_machine(folder).state == "pending" and time.monotonic() < deadline:
        if journal := Journal.acquire(folder):
            if read_machine(folder).state == "pending":  # again, now that no other process can write
                run(folder, journal, Bridge(bridge) if bridge is not None else None)
            break
        time.sleep(0.01)
    os._exit(0)  # immediately: the journal says that the machine's last process has exited


def run(folder: Path, journal: Journal, bridge: Bridge | None) -> None:
    """Run a machine from start to end. `end` is journaled only after its last process has exited.

    bridge  that its network is attached to, if it has one of its own
    """
    if read_request(folder, STOP_FILE):
        _try_append(journal, "stop")
        _write_end(journal, classify_end(noticed=False, stopped=True, exit_code=None), None)
        return
    processes.become_subreaper()
    record = read_machine(folder)
    network = bridge.attach(record.interface) if bridge and record.interface else None
    with inside(network) if network is not None else nullcontext():
        metadata = MetadataServer(record, (folder / USER_DATA_FILE).read_text())
        relay = internet.listen() if network is not None else None
    if network is not None and relay is not None:
        reach_computer(network, relay.getsockname()[1])
    where = {"metadata_url": metadata.url, "bridge": bridge.namespace if bridge else None}
    journal.append("start", {**asdict(processes.current_process()), **where})
    if network is None:
        agent = _start_agent(folder, ["/bin/sh", "-c", 'exec "$@"', "sh"], {METADATA_VARIABLE: metadata.url})
    else:
        with inside(network), first_process_next():
            agent = _start_agent(folder, [sys.executable, "-P", "-m", FIRST_PROCESS], {SHARED_VARIABLE: "1"})
    threading.Thread(target=metadata.serve_forever, daemon=True).start()
    if relay is not None:
        internet.start_relay(relay)
    _try_append(journal, "agent_start", asdict(agent))

    noticed = stopped = recommended = False
    runs_script, exit_code = is_script(folder), None
    sigterm_request: dict[str, Any] | None = None
    kill_at, heartbeat_at = math.inf, boottime() + HEARTBEAT_S
    while boottime() < kill_at:
        exit_code = _reap(agent.pid, exit_code)
        if has_powered_off(folder) if runs_script else exit_code is not None:
            break
        if boottime() >= heartbeat_at:
            heartbeat_at = boottime() + HEARTBEAT_S
            _try_append(journal, "heartbeat")
        if bridge and network is not None and (request := read_request(folder, ADDRESS_FILE)):
            _add_address(bridge, network, request["address"], journal, metadata)
        if not recommended and (request := read_request(folder, REBALANCE_FILE)):
            recommended = True
            _try_append(journal, "rebalance", request)
            metadata.record = replace(metadata.record, rebalance_at=request["rebalance_at"])
        if not noticed and (request := read_request(folder, PREEMPT_FILE)):
            noticed = True
            _try_append(journal, "notice", request)
            if request["notice_s"] > 0:  # else it is preempted without notice
                metadata.record = replace(metadata.record, preempt_at=request["preempt_at"])
            kill_at = min(kill_at, record.clock.boottime(request["preempt_at"]))
        if request := read_request(folder, STOP_FILE) or sigterm_request:
            kill_at = min(kill_at, request["kill_at"])  # a later request may shorten the grace period
            if not stopped:
                stopped = True
                _try_append(journal, "stop")
                agent.send_signal(signal.SIGTERM)
        if _wait_for_signal(min(heartbeat_at, kill_at, boottime() + POLL_INTERVAL_S)) == signal.SIGTERM:
            sigterm_request = {"kill_at": boottime() + GRACE_S}

    exit_code = _kill_tree(folder, agent.pid, exit_code)
    if runs_script and has_powered_off(folder):
        exit_code = 0  # it ended as it should, whatever its script returned
    _write_end(journal, classify_end(noticed=noticed, stopped=stopped, exit_code=exit_code), exit_code)


def _add_address(bridge: Bridge, network: int, address: str, journal: Journal, metadata: MetadataServer) -> None:
    """Give the machine a public address, unless it has it."""
    interface = metadata.record.interface
    if interface and address not in interface.addresses:
        try:
            bridge.add_address(network, address)
        except OSError as error:
            sys.stderr.write(f"no address {address}: {error}\n")
            return
        metadata.record = replace(metadata.record, interface=interface.with_address(address))
        _try_append(journal, "address", {"address": address})


def _start_agent(folder: Path, launcher: list[str], variables: dict[str, str]) -> processes.Process:
    """Start the agent in its own session; it is killed when this init dies. A command that can't be run exits 127.

    launcher   what executes its command
    variables  of its environment, besides this process's
    """
    init = os.getpid()

    def before_exec() -> None:
        processes.die_with_parent(init)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    command = json.loads((folder / BOOT_FILE).read_text())["command"]
    with (folder / AGENT_LOG).open("ab") as output:
        agent = subprocess.Popen(
            [*launcher, *command],
            cwd=folder,
            env={
                **os.environ,
                **(script_environment(folder) if is_script(folder) else {}),
                **variables,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=before_exec,  # noqa: PLW1509 - no other thread runs yet
        )
    agent.returncode = 0  # _reap waits for all children; this keeps Popen from waiting for it too
    return processes.identify(agent.pid)


def _reap(agent_pid: int, exit_code: int | None) -> int | None:
    """Wait for all children that have exited, orphans too; return the agent's exit code if it is known by now."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return exit_code
        if pid == 0:
            return exit_code
        if pid == agent_pid:
            exit_code = os.waitstatus_to_exitcode(status)


def _has_children() -> bool:
    """Whether any process of the tree is left: the orphans of a subreaper are its children."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _wait_for_signal(until: float) -> int | None:
    """Sleep until a signal arrives or until this `boottime`; return the signal."""
    received = signal.sigtimedwait(SIGNALS, max(0.0, until - boottime()))
    return received.si_signo if received else None


def _kill_tree(folder: Path, agent_pid: int, exit_code: int | None) -> int | None:
    """Kill every other process of the machine; return the agent's exit code when all have exited."""
    init = processes.current_process()

    def find_others() -> set[processes.Process]:
        marked = processes.find_by_environment(machine_environment(folder))
        return (processes.descendants(init.pid) | marked) - {init}

    def no_children() -> bool:
        nonlocal exit_code
        exit_code = _reap(agent_pid, exit_code)
        return not _has_children()

    while not processes.kill_all(find_others, no_children=no_children, timeout_s=GRACE_S):
        sys.stderr.write(
            f"some processes can't be killed; retrying: {sorted(process.pid for process in find_others())}\n"
        )
    return exit_code


def _try_append(journal: Journal, event: str, fields: dict[str, Any] | None = None) -> None:
    """Journal an event, or log the error: a full disk must neither stop a machine nor keep one alive."""
    try:
        journal.append(event, fields)
    except OSError as error:
        sys.stderr.write(f"{event} not journaled: {error}\n")


def _write_end(journal: Journal, cause: str, exit_code: int | None) -> None:
    """Journal the end, retrying until it is on disk, with the time at which it happened."""
    at = journal.clock.now()
    while True:
        try:
            journal.append_end(cause, exit_code, at)
            return
        except OSError as error:
            sys.stderr.write(f"end not journaled, retrying: {error}\n")
            time.sleep(1)


if __name__ == "__main__":
    main()
