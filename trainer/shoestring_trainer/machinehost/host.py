# SPDX-License-Identifier: Apache-2.0
"""The machines of one folder: launch, list, stop and preempt them, and end those whose init has died.

What it reports about a machine is read from the journal that the machine's init writes. A host that is killed and
started again on the same folder finds all its machines, ended ones too. Stopping the host stops no machine.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoestring_core.machine_network import NetworkStatus

from shoestring_trainer.folders import delete_folder
from shoestring_trainer.machinehost.clock import boottime, wall_us
from shoestring_trainer.machinehost.errors import RequestRejected, require
from shoestring_trainer.machinehost.init import GRACE_S
from shoestring_trainer.machinehost.journal import Journal, MachineRecord, read_machine
from shoestring_trainer.machinehost.launch_body import LaunchBody
from shoestring_trainer.machinehost.machine import Machine
from shoestring_trainer.machinehost.machine_folder import (
    ADDRESS_FILE,
    BOOT_FILE,
    INIT_LOG,
    PREEMPT_FILE,
    REBALANCE_FILE,
    SCRATCH,
    STOP_FILE,
    USER_DATA_FILE,
    fsync_folder,
    machine_environment,
    read_request,
    write_json,
)
from shoestring_trainer.machinehost.network import PUBLIC_ADDRESSES, is_public
from shoestring_trainer.machinehost.networks import Networks
from shoestring_trainer.machinehost.user_data import write_script
from shoestring_trainer.rank_server.isolation import (
    DATA_ROOTS_VARIABLE,
    HOOKS_ROOTS_VARIABLE,
    ISOLATION_VARIABLE,
    PRIVATE_VARIABLE,
)

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.2
ACK_TIMEOUT_S = 1.0  # how long a reply waits for the init to act on a request, which is valid in any case
DEFAULT_NOTICE_S, MAX_NOTICE_S = 120.0, 3600.0
EXIT_GRACE_S = 30.0  # for all machines to write checkpoints and end, where they end with the host
TOKEN_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
INHERITED_VARIABLES = {
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *(
        "CUDA_HOME",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        DATA_ROOTS_VARIABLE,
        HOOKS_ROOTS_VARIABLE,
        ISOLATION_VARIABLE,
        PRIVATE_VARIABLE,
    ),
}


class MachineHost:
    """The machines of one folder. Thread-safe. `command` is the agent's."""

    def __init__(self, folder: Path, *, slots: int, command: list[str]) -> None:
        self.slots = slots
        self._command = command
        self._folder = folder / "machines"
        self._lock = threading.RLock()
        self._launchers: list[subprocess.Popen[bytes]] = []
        self._networks = Networks()
        self._machines = {machine.record.id: machine for machine in self._load_machines()}

    def launch(self, token: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """201 and a new machine, or 200 and the same machine for a repeated request. A token launches one machine."""
        require(TOKEN_PATTERN.fullmatch(token), "a token is 1 to 128 letters, digits or . _ : -")
        request = LaunchBody.parse(body)
        machine_id = "lm-" + hashlib.sha256(token.encode()).hexdigest()[:17]
        with self._lock:
            if existing := self._machines.get(machine_id):
                return 200, _repeated_launch(existing, request)
            alive = sum(machine.refresh().ended_at is None for machine in self._machines.values())
            if alive >= self.slots:
                detail = f"no slot of {self.slots} is free: end a machine, or start with more --slots"
                raise RequestRejected(409, "capacity", detail)
            machine = self._create_machine(machine_id, token, request)
            self._networks.follow(self._machines.values())
            self._start_init(machine)
            return 201, machine.to_json()

    def list_machines(self) -> dict[str, Any]:
        """All machines, ended ones too, by launch time."""
        with self._lock:
            for machine in self._machines.values():
                machine.refresh()
            ordered = sorted(
                self._machines.values(), key=lambda machine: (machine.record.launched_at, machine.record.id)
            )
            return {"machines": [machine.to_json() for machine in ordered], "now": wall_us()}

    def get_machine(self, machine_id: str) -> dict[str, Any]:
        """One machine. Raises RequestRejected (404)."""
        with self._lock:
            machine = self._find(machine_id)
            machine.refresh()
            return machine.to_json()

    def stop(self, machine_id: str, grace_s: float = GRACE_S) -> dict[str, Any]:
        """SIGTERM now, SIGKILL after `grace_s`. A repeated call may shorten the grace period, never extend it."""
        machine = self._find(machine_id)
        kill_at = boottime() + grace_s
        with self._lock:
            earlier = read_request(machine.folder, STOP_FILE)
            if earlier is None or kill_at < earlier["kill_at"]:
                self._send_request(machine, STOP_FILE, {"kill_at": kill_at})
        return self._wait_for_init(machine, lambda record: record.stop_requested_at is not None)

    def preempt(self, machine_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Preempt a spot machine after `notice_s` (0: without notice). The first notice counts.

        On-demand machines need `force`.
        """
        notice_s, force = body.get("notice_s", DEFAULT_NOTICE_S), body.get("force", False)
        is_number = isinstance(notice_s, int | float) and not isinstance(notice_s, bool)
        require(set(body) <= {"notice_s", "force"}, 'known fields are "notice_s" and "force"')
        require(is_number and 0 <= notice_s <= MAX_NOTICE_S, f"notice_s must be 0 to {MAX_NOTICE_S:.0f} seconds")
        require(isinstance(force, bool), "force must be true or false")
        machine = self._find(machine_id)
        if machine.record.market != "spot" and not force:
            raise RequestRejected(
                409, "not-spot", 'only spot machines are preempted; send "force": true to test a failure'
            )
        with self._lock:
            if machine.refresh().ended_at is not None:
                raise RequestRejected(409, "ended", "the machine has ended", machine=machine.to_json())
            if read_request(machine.folder, PREEMPT_FILE) is None:
                preempt_at = machine.record.clock.now() + round(notice_s * 1e6)
                self._send_request(machine, PREEMPT_FILE, {"notice_s": notice_s, "preempt_at": preempt_at})
        return self._wait_for_init(machine, lambda record: record.notice_at is not None)

    def set_address(self, machine_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Give a machine with a network of its own a public address, in place of another."""
        address = body.get("address")
        require(set(body) == {"address"} and is_public(address), f"address must be one of {PUBLIC_ADDRESSES}")
        machine = self._find(machine_id)
        require(machine.record.interface, "the machine has this computer's network")
        with self._lock:
            self._send_request(machine, ADDRESS_FILE, {"address": address})
        told = self._wait_for_init(
            machine, lambda record: record.interface is not None and address in record.interface.addresses
        )
        with self._lock:
            self._networks.follow(self._machines.values())
        return told

    def recommend_rebalance(self, machine_id: str) -> dict[str, Any]:
        """Tell a machine that it is likely to be preempted. The first recommendation counts."""
        machine = self._find(machine_id)
        with self._lock:
            if read_request(machine.folder, REBALANCE_FILE) is None:
                self._send_request(machine, REBALANCE_FILE, {"rebalance_at": machine.record.clock.now()})
        return self._wait_for_init(machine, lambda record: record.rebalance_at is not None)

    def network_status(self) -> NetworkStatus:
        """Whether machines can have networks of their own."""
        with self._lock:
            return self._networks.status()

    def watch(self) -> None:
        """Read the journals, end machines whose init has died, and delete the scratch folders of ended machines.

        An error of one machine is logged, and the machine is checked again by the next call.
        """
        with self._lock:
            self._launchers = [launcher for launcher in self._launchers if launcher.poll() is None]
        for machine in self._alive():
            try:
                self._check(machine)
            except OSError as error:  # such as a full disk
                log.warning("%s: %s", machine.record.id, error)
        self._delete_scratch()

    def stop_all(self) -> None:
        """Stop every machine, and wait until all have ended, also those whose folders are deleted meanwhile."""
        asked: set[str] = set()
        while alive := self._alive():
            for machine in alive:
                if (machine_id := machine.record.id) not in asked:
                    try:
                        self.stop(machine_id, EXIT_GRACE_S)
                        asked.add(machine_id)
                    except OSError as error:
                        log.warning("%s can't be stopped yet: %s", machine_id, error)
            self.watch()
            time.sleep(WATCH_INTERVAL_S)

    def _alive(self) -> list[Machine]:
        with self._lock:
            return [machine for machine in self._machines.values() if machine.record.ended_at is None]

    def _delete_scratch(self) -> None:
        """Free the disk space of ended machines. Their journals and what they reported remain."""
        with self._lock:
            ended = [
                machine
                for machine in self._machines.values()
                if machine.record.ended_at is not None and not machine.scratch_deleted
            ]
        for machine in ended:
            try:
                delete_folder(machine.folder / SCRATCH)
            except OSError as error:
                log.warning("%s: its scratch folder can't be deleted: %s", machine.record.id, error)
            machine.scratch_deleted = True

    def _check(self, machine: Machine) -> None:
        """End a machine whose journal is not locked: its init never started, or it died and left processes behind."""
        with self._lock:
            if machine.refresh().ended_at is not None:
                log.info("%s ended: %s", machine.record.id, machine.record.end_cause)
                return
            if machine.folder_deleted:
                machine.end_without_folder()
                return
        journal = Journal.acquire(machine.folder)
        if journal is None:
            return
        with journal:
            with self._lock:
                record = machine.refresh()  # again, now that no other process can write
            if record.ended_at is not None:
                return
            if record.started_at is None and machine.init_may_start():
                return
            machine.end_without_init(journal)

    def _load_machines(self) -> list[Machine]:
        """The machines of earlier hosts. A machine whose launch was journaled but whose init never ran is started."""
        self._folder.mkdir(exist_ok=True)
        machines = []
        for folder in sorted(self._folder.iterdir()):
            if folder.name.startswith("."):  # a launch that was never completed, so it was never answered either
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if machine := Machine.open(folder):
                machines.append(machine)
            else:
                log.warning("%s contains no launch; ignored", folder)
        self._networks.follow(machines)
        for machine in machines:
            if machine.record.state == "pending":
                self._start_init(machine)
        return machines

    def _create_machine(self, machine_id: str, token: str, request: LaunchBody) -> Machine:
        """Create the complete folder by one rename: after a crash it exists with its launch, or not at all.

        Once renamed, the machine exists: whatever fails later, its token is used and its end will be reported.
        """
        interface = self._networks.choose_interface(request.network, len(self._machines))
        draft = self._folder / f".{machine_id}"
        folder = self._folder / machine_id
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(mode=0o700)
            if isinstance(request.user_data, str):
                write_script(draft, request.user_data, request.commands)
                write_json(draft / BOOT_FILE, {"command": [str(folder / USER_DATA_FILE)]})
            else:
                write_json(draft / USER_DATA_FILE, request.user_data)
                write_json(draft / BOOT_FILE, {"command": self._command})
            with Journal.create(draft) as journal:
                fields = {"id": machine_id, "token": token, **request.journal_fields()}
                journal.append_launch({**fields, "interface": interface and asdict(interface)})
            fsync_folder(draft)
            draft.rename(folder)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        machine = self._machines[machine_id] = Machine(folder, read_machine(folder), 0)
        fsync_folder(self._folder)
        return machine

    def _start_init(self, machine: Machine) -> None:
        """Start an init. A second one does no harm: it finds the journal locked or the machine started, and exits."""
        machine.init_started = time.monotonic()
        bridge = [self._networks.bridge.namespace] if machine.record.interface and self._networks.bridge else []
        with (machine.folder / INIT_LOG).open("ab") as output:
            command = [sys.executable, "-P", "-m", "shoestring_trainer.machinehost.init", str(machine.folder)]
            launcher = subprocess.Popen(
                [*command, *map(str, bridge)],
                cwd=machine.folder,
                env=_inherited_environment() | machine_environment(machine.folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=bridge,
            )
        self._launchers.append(launcher)
        log.info("%s launched for token %s", machine.record.id, machine.record.token)

    def _find(self, machine_id: str) -> Machine:
        with self._lock:
            if machine := self._machines.get(machine_id):
                return machine
        raise RequestRejected(404, "not-found", f"no machine {machine_id[:64]!r}: GET /machines lists all")

    def _send_request(self, machine: Machine, name: str, request: dict[str, Any]) -> None:
        """Write a request to a file in the machine's folder, and wake the machine's init."""
        record = machine.refresh()
        if record.ended_at is None and not machine.folder_deleted:
            write_json(machine.folder / name, request)
            if record.init:
                record.init.send_signal(signal.SIGUSR1)

    def _wait_for_init(self, machine: Machine, is_done: Callable[[MachineRecord], bool]) -> dict[str, Any]:
        """The machine once its init has acted on a request, so that the reply shows it; after ACK_TIMEOUT_S anyway."""
        deadline = time.monotonic() + ACK_TIMEOUT_S
        while True:
            with self._lock:
                record = machine.refresh()
                if is_done(record) or record.ended_at is not None or time.monotonic() > deadline:
                    return machine.to_json()
            time.sleep(0.005)


def _repeated_launch(machine: Machine, request: LaunchBody) -> dict[str, Any]:
    record = machine.refresh()
    if record.body_sha256 != request.body_sha256:
        detail = "this token launched a machine with a different request: repeat the same body, or use a new token"
        raise RequestRejected(409, "idempotency-mismatch", detail, machine=machine.to_json())
    if record.ended_at is not None:
        detail = "this token's machine has ended: use a new token"
        raise RequestRejected(409, "token-ended", detail, machine=machine.to_json())
    return machine.to_json()


def _inherited_environment() -> dict[str, str]:
    """What a machine inherits of this process's environment: no secrets of servers that run on this computer."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED_VARIABLES or name.startswith("SHOESTRING_AGENT_")
    }
    if paths := inherited.get("PYTHONPATH"):  # these may be relative, and a machine runs in another folder
        inherited["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in paths.split(os.pathsep))
    return inherited
