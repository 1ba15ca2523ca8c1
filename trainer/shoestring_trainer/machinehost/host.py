# SPDX-License-Identifier: Apache-2.0
"""The local cloud: rents out "machines" that are process trees on this computer, over HTTP on loopback.

    python -m shoestring_trainer.machinehost --dir DIR [--port 0] [--slots N]

What it says about a machine is read from that machine's journal, which the machine's own init writes: its word outlives
it. Killed and started again on the same folder it finds every machine again, ended ones too. Its end stops no machine.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import hmac
import json
import math
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from shoestring_trainer import processes
from shoestring_trainer.machinehost.init import BOOT, GRACE_S, OWN_S, RECLAIM, STOP, USER_DATA, marks, read_order
from shoestring_trainer.machinehost.journal import (
    FILE,
    HEARTBEAT_S,
    Journal,
    MachineRecord,
    end_cause,
    now_us,
    read_machine,
    read_on,
)
from shoestring_trainer.machinehost.metadata import LoopbackServer

WATCH_S = 0.2
DYING_S = 1.0  # what an earlier host may take to die, when it and what started it were killed together
SEEN_S, BOOT_S = 1.0, OWN_S + 10.0  # a new init shows in the process table by the first, and has begun by the second
HEED_S = 1.0  # how long a reply waits for an init to follow an order; the order stands anyway
KILL_S = 5.0
BODY_LIMIT = 256 * 1024
NOTICE_S, LONGEST_NOTICE_S = 120.0, 3600.0
LONGEST_GRACE_S = 3600.0
PARTING_S = 30.0  # for all machines to checkpoint and end, where they end with the host
SCRATCH = "scratch"
"""What of a machine's folder only the machine itself needs."""
TOKEN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
TYPE = re.compile(r"[A-Za-z0-9._-]{1,64}")
PRICE = re.compile(r"\d{1,9}(\.\d{1,9})?")
PASSED_ON = {
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("CUDA_HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_FILE", "SSL_CERT_DIR"),
}


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit codes are those of sysexits.h: what failed is on stderr, with what to do."""
    options = _options(argv)
    try:
        folder = _prepare(options.dir)
    except OSError as error:
        where = f"{options.dir} ({error.strerror})"
        return _fail(os.EX_CANTCREAT, f"can't write in {where}: give --dir a writable folder with room")
    except AlreadyServed as other:
        return _fail(os.EX_TEMPFAIL, f"{other}: use that one, or stop it first, or give another --dir")
    try:
        server = _Server(options.port)
    except OSError as error:
        where = f"127.0.0.1:{options.port} ({error.strerror})"
        return _fail(os.EX_UNAVAILABLE, f"can't listen on {where}: give another --port, or 0 for a free one")

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        server.host = MachineHost(folder, slots=options.slots, command=options.command)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _write_file(folder / "machinehost.json", {"url": server.url, "key": server.key, "pid": os.getpid()})
    except OSError as error:
        return _fail(os.EX_CANTCREAT, f"can't write in {folder} ({error.strerror}): make room, then start again")
    _log(f"machine host ready at {server.url}, {options.slots} slots, folder {folder}")
    while not stopping.wait(WATCH_S):
        server.host.watch()
    if options.stop_machines_on_exit:
        server.host.stop_all()
    server.shutdown()
    return 0


class AlreadyServed(Exception):
    """Another machine host holds the folder."""


class Refused(Exception):
    """A request that is answered with an error: an HTTP status, a stable code, and what to do."""

    def __init__(self, status: int, code: str, detail: str, **more: object) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"code": code, "detail": detail, **more}


@dataclass(frozen=True)
class Launch:
    """A valid launch request. `body_sha256` tells a repeat from another request under the same token."""

    tags: dict[str, str]
    type: str
    market: str
    price: str
    user_data: dict[str, Any]
    body_sha256: str

    def terms(self) -> dict[str, Any]:
        """What the journal keeps. The user data holds a secret and has a file of its own."""
        return {name: value for name, value in vars(self).items() if name != "user_data"}

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Launch:
        """Raises Refused for anything that isn't the contract's body."""
        known = {"tags", "type", "market", "price", "user_data"}
        _require(set(body) <= known, f"unknown fields {sorted(set(body) - known)}; known are {sorted(known)}")
        tags, user_data = body.get("tags", {}), body.get("user_data", {})
        kind, market, price = body.get("type"), body.get("market"), body.get("price")
        texts = isinstance(tags, dict) and all(isinstance(tag, str) for tag in tags.values())
        _require(texts, "tags must map text to text")
        _require(isinstance(kind, str) and TYPE.fullmatch(kind), 'type must be a name such as "local.cpu"')
        _require(market in ("spot", "on_demand"), 'market must be "spot" or "on_demand"')
        _require(isinstance(price, str) and PRICE.fullmatch(price), 'price must be a decimal text such as "0.158"')
        _require(isinstance(user_data, dict), "user_data must be a JSON object")
        whole = {"tags": tags, "type": kind, "market": market, "price": price, "user_data": user_data}
        canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"))
        return cls(**whole, body_sha256=hashlib.sha256(canonical.encode()).hexdigest())


@dataclass
class Machine:
    """One machine as the host follows it: the record so far, and up to where its journal has been read."""

    folder: Path
    record: MachineRecord
    offset: int
    spawned: float = -math.inf  # monotonic; when this host last started an init for it
    wiped: bool = False

    @classmethod
    def open(cls, folder: Path) -> Machine | None:
        """The machine of this folder; None if no launch was journaled."""
        record, offset = read_on(folder / FILE, None, 0)
        return None if record is None else cls(folder, record, offset)

    def read(self) -> MachineRecord:
        if self.record.ended_at is None:
            record, self.offset = read_on(self.folder / FILE, self.record, self.offset)
            self.record = record or self.record
        return self.record

    def view(self) -> dict[str, Any]:
        record = self.record
        return {
            "id": record.id,
            "token": record.token,
            "tags": record.tags,
            "type": record.type,
            "market": record.market,
            "price": record.price,
            "state": record.state,
            "launched_at": record.launched_at,
            "started_at": record.started_at,
            "taken_at": record.taken_at,
            "ended_at": record.ended_at,
            "end_cause": record.end_cause,
            "end_code": record.end_code,
            "metadata": record.metadata,
            "dir": str(self.folder),
            "journal": str(self.folder / FILE),
            "pid": record.init and record.init.pid,
            "agent_pid": record.agent and record.agent.pid,
            "address": "127.0.0.1",
        }


class MachineHost:
    """The machines of one folder. Safe to call from many threads."""

    def __init__(self, folder: Path, *, slots: int, command: list[str]) -> None:
        self.slots = slots
        self._command = command
        self._folder = folder / "machines"
        self._lock = threading.RLock()
        self._launchers: list[subprocess.Popen[bytes]] = []
        self._machines = {machine.record.id: machine for machine in self._found()}

    def launch(self, token: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """201 and a new machine; 200 and the same one for the same request again. A token buys one machine, ever."""
        _require(TOKEN.fullmatch(token), "a token is 1 to 128 letters, digits or . _ : -")
        asked = Launch.parse(body)
        name = "lm-" + hashlib.sha256(token.encode()).hexdigest()[:17]
        with self._lock:
            if known := self._machines.get(name):
                return 200, self._repeated(known, asked)
            alive = sum(machine.read().ended_at is None for machine in self._machines.values())
            if alive >= self.slots:
                detail = f"all {self.slots} slots are taken: end a machine, or start with more --slots"
                raise Refused(409, "capacity", detail)
            machine = self._create(name, token, asked)
            self._spawn(machine)
            return 201, machine.view()

    def machines(self) -> dict[str, Any]:
        """Every machine there ever was, oldest first."""
        with self._lock:
            for machine in self._machines.values():
                machine.read()
            ordered = sorted(
                self._machines.values(), key=lambda machine: (machine.record.launched_at, machine.record.id)
            )
            return {"machines": [machine.view() for machine in ordered], "now": now_us()}

    def show(self, name: str) -> dict[str, Any]:
        with self._lock:
            machine = self._get(name)
            machine.read()
            return machine.view()

    def stop(self, name: str, grace_s: float = GRACE_S) -> dict[str, Any]:
        """End a machine: SIGTERM now, SIGKILL after `grace_s`. Asked again, the end may come sooner, never later."""
        machine = self._get(name)
        kill_at = now_us() + round(grace_s * 1e6)
        with self._lock:
            known = read_order(machine.folder, STOP)
            if known is None or kill_at < known["kill_at"]:
                self._order(machine, STOP, {"kill_at": kill_at})
        return self._heeded(machine, lambda record: record.stop_at is not None)

    def reclaim(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Take a spot machine after a notice of `notice_s`, 0 = none. The first stands; on-demand needs `force`."""
        notice_s, force = body.get("notice_s", NOTICE_S), body.get("force", False)
        number = isinstance(notice_s, int | float) and not isinstance(notice_s, bool)
        _require(set(body) <= {"notice_s", "force"}, 'known fields are "notice_s" and "force"')
        _require(number and 0 <= notice_s <= LONGEST_NOTICE_S, f"notice_s must be 0 to {LONGEST_NOTICE_S:.0f} seconds")
        _require(isinstance(force, bool), "force must be true or false")
        machine = self._get(name)
        if machine.record.market != "spot" and not force:
            raise Refused(409, "not-spot", 'only spot machines are reclaimed; send "force": true for a failure drill')
        with self._lock:
            if machine.read().ended_at is not None:
                raise Refused(409, "ended", "the machine has ended", machine=machine.view())
            if read_order(machine.folder, RECLAIM) is None:
                taken_at = now_us() + round(notice_s * 1e6)
                self._order(machine, RECLAIM, {"notice_s": notice_s, "taken_at": taken_at})
        return self._heeded(machine, lambda record: record.notice_at is not None)

    def watch(self) -> None:
        """Take note of what inits wrote, and end what lost its init. Never raises for one machine's sake."""
        with self._lock:
            self._launchers = [launcher for launcher in self._launchers if launcher.poll() is None]
        for machine in self._living():
            try:
                self._watch_one(machine)
            except OSError as error:  # disk full, say: the next look tries again
                _log(f"{machine.record.id}: {error}")
        self._wipe()

    def stop_all(self) -> None:
        """End every machine, and wait until they have."""
        for machine in self._living():
            self.stop(machine.record.id, PARTING_S)
        while self._living():
            self.watch()
            time.sleep(WATCH_S)

    def _living(self) -> list[Machine]:
        with self._lock:
            return [machine for machine in self._machines.values() if machine.record.ended_at is None]

    def _wipe(self) -> None:
        """Give back the room of machines that have ended. Their journals and what they reported stay."""
        with self._lock:
            ended = [each for each in self._machines.values() if each.record.ended_at is not None and not each.wiped]
        for machine in ended:
            shutil.rmtree(machine.folder / SCRATCH, ignore_errors=True)
            machine.wiped = True

    def _watch_one(self, machine: Machine) -> None:
        """A free journal means that no init lives: it never began, or it died and its orphans must follow it."""
        with self._lock:
            if machine.read().ended_at is not None:
                _log(f"{machine.record.id} ended: {machine.record.end_cause}")
                return
        journal = Journal.own(machine.folder)
        if journal is None:
            return
        with journal:
            with self._lock:
                record = machine.read()  # again, now that nobody else can write
            if record.ended_at is not None:
                return
            if record.started_at is None and _on_its_way(machine):
                return
            _end_without_init(machine.folder, record, journal)

    def _found(self) -> list[Machine]:
        """The machines of earlier hosts. One whose launch was journaled but whose init never began is started now."""
        self._folder.mkdir(exist_ok=True)
        machines = []
        for folder in sorted(self._folder.iterdir()):
            if folder.name.startswith("."):  # a launch that was never completed, so it was never answered either
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if machine := Machine.open(folder):
                machines.append(machine)
            else:
                _log(f"{folder} holds no launch; left alone")
        for machine in machines:
            if machine.record.state == "pending":
                self._spawn(machine)
        return machines

    def _create(self, name: str, token: str, asked: Launch) -> Machine:
        """Make the folder, complete, in one rename: after a crash it is there with its launch, or not at all.

        From the rename on the machine is known: whatever fails later, its token is spent and its end will be told.
        """
        draft = self._folder / f".{name}"
        folder = self._folder / name
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(mode=0o700)
            _write_file(draft / BOOT, {"command": self._command})
            _write_file(draft / USER_DATA, asked.user_data)
            with Journal.create(draft) as journal:
                journal.append("launch", {"id": name, "token": token, **asked.terms()})
            _fsync(draft)
            draft.rename(folder)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        machine = self._machines[name] = Machine(folder, read_machine(folder), 0)
        _fsync(self._folder)
        return machine

    def _spawn(self, machine: Machine) -> None:
        """Start an init. One too many does no harm: it finds the journal taken, or the machine begun, and leaves."""
        machine.spawned = time.monotonic()
        with (machine.folder / "init.log").open("ab") as log:
            launcher = subprocess.Popen(
                [sys.executable, "-m", "shoestring_trainer.machinehost.init", str(machine.folder)],
                cwd=machine.folder,
                env=_environment(machine.folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._launchers.append(launcher)
        _log(f"{machine.record.id} launched for token {machine.record.token}")

    def _repeated(self, known: Machine, asked: Launch) -> dict[str, Any]:
        record = known.read()
        if record.body_sha256 != asked.body_sha256:
            detail = "this token bought a machine with another request: repeat the same bytes, or use a new token"
            raise Refused(409, "idempotency-mismatch", detail, machine=known.view())
        if record.ended_at is not None:
            raise Refused(409, "token-ended", "this token's machine has ended: use a new token", machine=known.view())
        return known.view()

    def _get(self, name: str) -> Machine:
        with self._lock:
            if machine := self._machines.get(name):
                return machine
        raise Refused(404, "not-found", f"no machine {name[:64]!r}: GET /machines lists all")

    def _order(self, machine: Machine, name: str, order: dict[str, Any]) -> None:
        """Leave an order where the machine's init finds it, and wake the init."""
        record = machine.read()
        if record.ended_at is None:
            _write_file(machine.folder / name, order)
            if record.init:
                record.init.send_signal(signal.SIGUSR1)

    def _heeded(self, machine: Machine, followed: Callable[[MachineRecord], bool]) -> dict[str, Any]:
        """The machine once its init has followed an order, so that the reply shows the effect; soon in any case."""
        deadline = time.monotonic() + HEED_S
        while True:
            with self._lock:
                record = machine.read()
                if followed(record) or record.ended_at is not None or time.monotonic() > deadline:
                    return machine.view()
            time.sleep(0.005)


def _grace_s(query: str) -> float:
    """The `grace_s` of a query such as grace_s=20; the usual grace without one."""
    if not query:
        return GRACE_S
    name, _, value = query.partition("=")
    number = float(value) if name == "grace_s" and re.fullmatch(r"\d{1,4}(\.\d{1,6})?", value) else math.inf
    _require(number <= LONGEST_GRACE_S, f"the query may be grace_s=0 to grace_s={LONGEST_GRACE_S:.0f} (seconds)")
    return number


def _on_its_way(machine: Machine) -> bool:
    """Whether an init that was started may still reach the journal."""
    age_s = time.monotonic() - machine.spawned
    return age_s < SEEN_S or (age_s < BOOT_S and bool(processes.with_environment(marks(machine.folder))))


def _end_without_init(folder: Path, record: MachineRecord, journal: Journal) -> None:
    """Kill what an init left behind, and write the end that it could not write.

    If something still lived, the machine lived until now. If nothing did, it can't have lived longer than one heartbeat
    after its last line, however long nobody looked.
    """
    lived = bool(processes.with_environment(marks(folder)))
    if not processes.kill_all(lambda: processes.with_environment(marks(folder)), within_s=KILL_S):
        _log(f"{record.id}: some processes do not die; trying on")
        return
    now = now_us()
    at = now if lived else min(now, record.last_at + round(HEARTBEAT_S * 1e6))
    noticed = record.notice_at is not None or read_order(folder, RECLAIM) is not None
    stopped = record.stop_at is not None or read_order(folder, STOP) is not None
    cause = end_cause(noticed=noticed, stopped=stopped, code=None)
    journal.append("end", {"cause": cause, "code": None, "by": "machinehost"}, at=at)


class _Server(LoopbackServer):
    host: MachineHost

    def __init__(self, port: int) -> None:
        super().__init__(port, _Handler)
        self.key = secrets.token_urlsafe(32)

    def handle_error(self, *_: object) -> None:
        _log(f"a connection failed: {sys.exc_info()[1]!r}")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 30
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        try:
            self._authorize()
            sent = self._body()
        except Refused as refused:
            self._answer(refused.status, refused.body)
            return
        try:
            status, body = self._route(sent)
        except Refused as refused:
            status, body = refused.status, refused.body
        except RecursionError:
            status, body = 400, {"code": "bad-request", "detail": "the body is nested too deeply"}
        except OSError as error:
            detail = f"the machine host can't write its folder ({error.strerror}): make room, then repeat"
            status, body = 507, {"code": "storage", "detail": detail}
        except Exception:  # noqa: BLE001 - the caller gets an answer, and the log the fault
            traceback.print_exc()
            status, body = 500, {"code": "internal", "detail": "a fault in the machine host; its log says more"}
        self._answer(status, body)

    def _authorize(self) -> None:
        sent = self.headers.get("Authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(sent, f"Bearer {self.server.key}".encode()):
            detail = "send Authorization: Bearer with the key in machinehost.json, which is new at each start"
            raise Refused(401, "unauthorized", detail)

    def _route(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        host, method = self.server.host, self.command
        path, _, query = self.path.partition("?")
        match [unquote(part) for part in path.split("/")[1:]]:
            case ["health"] if method == "GET":
                return 200, {"status": "ok", "slots": host.slots, "now": now_us()}
            case ["machines"] if method == "GET":
                return 200, host.machines()
            case ["machines", token] if method == "PUT":
                return host.launch(token, body)
            case ["machines", name] if method == "GET":
                return 200, host.show(name)
            case ["machines", name] if method == "DELETE":
                return 202, host.stop(name, _grace_s(query))
            case ["machines", name, "reclaim"] if method == "POST":
                return 202, host.reclaim(name, body)
            case ["health"] | ["machines"] | ["machines", _] | ["machines", _, "reclaim"]:
                raise Refused(405, "method-not-allowed", f"{method} is not for this path")
        raise Refused(404, "not-found", "paths are /health, /machines, /machines/ID and /machines/ID/reclaim")

    def _body(self) -> dict[str, Any]:
        """The request's JSON object; {} if it has none."""
        if "Transfer-Encoding" in self.headers:
            raise Refused(411, "length-required", "send the body with a Content-Length")
        length = self.headers.get("Content-Length", "0")
        _require(length.isascii() and length.isdigit(), "Content-Length must be a number")
        if len(length) > 9 or int(length) > BODY_LIMIT:
            raise Refused(413, "too-large", f"a body may have {BODY_LIMIT} bytes")
        raw = self.rfile.read(int(length))
        _require(len(raw) == int(length), "the body is shorter than its Content-Length")
        try:
            body = json.loads(raw or b"{}", parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "bad-request", f"the body is not JSON: {error}") from None
        _require(isinstance(body, dict), "the body must be a JSON object")
        return dict(body)

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if status >= 400:  # what is left unread of a refused request must not be taken for the next one
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses (malformed request lines, unknown methods), as JSON too."""
        self.close_connection = True
        self._answer(code, {"code": "bad-request", "detail": message or explain or f"HTTP status {code}"})

    def log_message(self, *_: object) -> None:
        """Launches and ends are logged; requests are not."""


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m shoestring_trainer.machinehost", description="The local cloud.")
    parser.add_argument("--dir", type=Path, required=True, help="the folder that keeps the machines and their journals")
    parser.add_argument("--port", type=int, default=0, help="loopback port; 0, the default, takes a free one")
    parser.add_argument("--slots", type=int, default=max(2, os.cpu_count() or 1), help="machines at a time")
    parser.add_argument("--stop-machines-on-exit", action="store_true", help="for a container, whose end is theirs too")
    options = parser.parse_args(argv)
    if options.slots < 1 or not 0 <= options.port <= 65535:
        parser.error("--slots must be at least 1, --port 0 to 65535")
    try:
        options.command = _agent_command(os.environ.get("SHOESTRING_AGENT_COMMAND"))
    except ValueError as error:
        parser.error(str(error))
    return options


def _agent_command(setting: str | None) -> list[str]:
    """What a machine runs: the agent, or what SHOESTRING_AGENT_COMMAND says, a JSON list of arguments."""
    if not setting:
        return [sys.executable, "-m", "shoestring_trainer", "agent"]
    command = json.loads(setting)
    if not (isinstance(command, list) and command and all(isinstance(word, str) for word in command)):
        raise ValueError('SHOESTRING_AGENT_COMMAND must be a JSON list of texts, such as ["python", "agent.py"]')
    return command


def _prepare(directory: Path) -> Path:
    """Make the folder and hold its lock for as long as this process lives. Raises OSError or AlreadyServed."""
    directory.mkdir(parents=True, exist_ok=True)
    folder = directory.resolve()
    descriptor = os.open(
        folder / "machinehost.lock", os.O_RDWR | os.O_CREAT, 0o600
    )  # never closed: the lock is the life
    deadline = time.monotonic() + DYING_S
    while not _locked(descriptor):
        if time.monotonic() > deadline:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"
            raise AlreadyServed(f"another machine host (pid {holder}) serves {folder}")
        time.sleep(0.02)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    (folder / "machinehost.json").unlink(missing_ok=True)  # an earlier host's, which nobody should call any more
    (folder / "machines").mkdir(exist_ok=True)
    return folder


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _environment(folder: Path) -> dict[str, str]:
    """What a machine may know of this process's environment: no secrets of servers that run beside it."""
    mine = {name: os.environ[name] for name in os.environ if name in PASSED_ON or name.startswith("SHOESTRING_AGENT_")}
    if paths := mine.get("PYTHONPATH"):  # these may be relative, and a machine runs in another folder
        mine["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in paths.split(os.pathsep))
    return {**mine, **marks(folder)}


def _write_file(path: Path, value: dict[str, Any]) -> None:
    """Readable by this user alone; whole or not at all."""
    draft = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    _fsync(path.parent)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require(holds: object, detail: str) -> None:
    if not holds:
        raise Refused(400, "bad-request", detail)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _log(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _fail(code: int, message: str) -> int:
    _log(f"machinehost: {message}")
    return code


if __name__ == "__main__":
    sys.exit(main())
