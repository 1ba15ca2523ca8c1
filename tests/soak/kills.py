# SPDX-License-Identifier: Apache-2.0
"""kill -9 of real processes at random moments of a job's life, judged by journals and the process table.

    python -m tests.soak.kills --case CASE --seed N

A case is a target and a database, e.g. worker-sqlite. The seed draws the moment: a phase of the job as it shows from
outside (a journal's first line, a checkpoint's objects, a rank's last word), and how long after that the process is
killed. The job, on a gang of two machines, must succeed all the same: each step once, no slot ever with two machines,
no two generations with ranks at once, nothing left alive, and the bill exact to the micro-dollar.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from shoestring.client import ServiceError, ServiceUnreachable
from shoestring_core import rest

from tests import servers
from tests.e2e import witness
from tests.e2e.service import Service, machine_processes, service_processes

TARGETS = ("worker", "api", "agent", "rank", "rank-server", "machines", "up", "redis", "pair")
DATABASES = ("sqlite", "postgresql")
CASES = [f"{target}-{database}" for target in TARGETS for database in DATABASES]

STEPS = 450
JOB = {
    "recipe": "digits/quickstart",
    "params": {"epochs": 10, "width": 8},
    "resources": {"nodes": 2, "procs": 1},
    "checkpoint": {"every": "1s"},
    "limits": {"cost": "0.50"},
    "retry": {"max": 9},
}
PATIENCE_S = 240.0
POLL_S = 0.005

ANY_TIME = (
    "launching", "booting", "forming", "starting", "training", "checkpointing", "draining", "launching again",
    "finishing", "settling",
)  # fmt: skip
PHASES = {
    "agent": ANY_TIME[1:9],
    "rank": ("starting", "training", "checkpointing", "draining", "finishing"),
    "rank-server": ANY_TIME[1:9],
}
"""What can be killed when; a target that isn't named here lives all the time."""

AFTER_S = {
    "launching": 0.02, "launching again": 0.02, "checkpointing": 0.02, "training": 0.2, "draining": 0.5,
    "finishing": 0.7, "settling": 0.2,
}  # fmt: skip
"""The most that a kill comes after its sign, else two seconds. Short where what must be hit is: a call, a commit."""


@dataclass(frozen=True)
class Kill:
    target: str
    phase: str
    step: int
    after_s: float
    restart_s: float
    """`up` is started again so much later."""


@dataclass(frozen=True)
class Plan:
    """All that a seed draws. `preempt_step`: the provider takes a machine back there, None: never."""

    kills: tuple[Kill, ...]
    preempt_step: int | None
    pick: int
    """Which of several live processes of a kind is killed."""


def plan(target: str, seed: int) -> Plan:
    draw = random.Random(f"{target}:{seed}")
    targets = draw.sample(TARGETS[:-1], 2) if target == "pair" else [target]
    kills = []
    for number, one in enumerate(targets):
        phase = draw.choice(PHASES.get(one, ANY_TIME))
        if number and draw.random() < 0.5 and kills[0].phase in PHASES.get(one, ANY_TIME):
            phase = kills[0].phase  # both at almost the same moment
        step, after_s = draw.randrange(1, STEPS * 4 // 5), draw.uniform(0, AFTER_S.get(phase, 2.0))
        kills.append(Kill(one, phase, step, after_s, restart_s=draw.choice([0.0, draw.uniform(0, 5)])))
    needed = {kill.phase for kill in kills} & {"draining", "launching again"}
    preempted = bool(needed) or draw.random() < 0.25
    return Plan(tuple(kills), draw.randrange(STEPS // 10, STEPS // 2) if preempted else None, draw.randrange(100))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shoestring-kills-"))
    print(f"case {options.case}, seed {options.seed}, in {folder}", flush=True)
    prove(options.case, options.seed, folder)
    shutil.rmtree(folder)  # a broken run's is left to look at
    return 0


def prove(case: str, seed: int, folder: Path) -> None:
    """Run one job, kill what the seed says, and judge. Raises AssertionError."""
    target, _, database = case.rpartition("-")
    with database_url(database, folder) as url:
        service = Service(
            folder / "service", servers.free_port(), options=("--budget", "5.00", "--slots", "2"),
            environment={"SHOESTRING_DATABASE_URL": url},
        )  # fmt: skip
        service.start()
        try:
            Run(service, url, plan(target, seed)).live_through()
            judge(service, url)
        finally:
            service.stop()


@contextlib.contextmanager
def database_url(kind: str, folder: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'store.db'}"
        return
    postgres = servers.Postgres()
    try:
        yield postgres.url(postgres.create())
    finally:
        postgres.stop()


def judge(service: Service, database_url: str) -> None:
    data = service.data
    witness.require_none_alive(data)
    witness.require_one_machine_a_slot(data)
    witness.require_one_generation_at_a_time(data)
    witness.require_exact_bills(data, database_url)
    assert service.interrupt() == 0
    assert not (left := service_processes(service)), f"left behind by the service: {left}"


@dataclass
class Run:
    """One job under fire. What happens is printed with seconds since its submission."""

    service: Service
    database_url: str
    plan: Plan
    submitted: float = 0.0
    to_kill: list[Kill] = field(default_factory=list)
    due: dict[Kill, float] = field(default_factory=dict)
    job: rest.Job | None = None

    def live_through(self) -> None:
        """Submit, kill, wait until it is settled; the curve must be each step once, as the ranks wrote it."""
        say(f"plan: {self.plan}")
        with witness.Watch(self.service.data) as watch:
            submitted = self.service.client.submit(JOB)
            self.submitted = time.monotonic()
            self._kill_when_due()
            job = self._settled(submitted.id)
        self._note(f"{job.end_reason}, settled after {watch.looks} looks at the process table")
        self._tell()
        assert not watch.broken, watch.broken
        assert job.end_reason == "succeeded", job.status_text
        curve = next(c for c in self.service.client.metrics(job.id).curves if c.name == "train/loss")
        assert curve.steps == list(range(1, STEPS + 1)), f"steps that are not 1..{STEPS}: {_odd(curve.steps)}"
        written = witness.merged(self.service.data)
        assert dict(zip(curve.steps, curve.values, strict=True)) == written, "the curve is not what the ranks wrote"

    def _kill_when_due(self) -> None:
        """Watch for signs closely, do what they call for. Ends when all is killed and, if planned, preempted."""
        self.to_kill = list(self.plan.kills)
        preempt, deadline, look = self.plan.preempt_step, time.monotonic() + PATIENCE_S, 0.0
        while self.to_kill or preempt is not None:
            now = time.monotonic()
            assert now < deadline, f"never came: {self.to_kill}"
            if preempt is not None and self._step() >= preempt:
                preempt = self._preempt()
            for kill in list(self.to_kill):
                if kill not in self.due and self._shows(kill):
                    self.due[kill] = now + kill.after_s
                if now >= self.due.get(kill, deadline) and self._strike(kill):
                    self.to_kill.remove(kill)
            if now >= look:
                look = now + 1.0
                if self._is_over():
                    break
            time.sleep(POLL_S)
        assert not self.to_kill, f"the job was over before {self.to_kill}"
        assert preempt is None, "the job was over before the provider took a machine"

    def _shows(self, kill: Kill) -> bool:
        """Whether the phase has begun, by signs that anybody can see in the machines' and objects' folders."""
        machines, data = self.service.data / "cloud" / "machines", self.service.data
        match kill.phase:
            case "launching":
                return _any(machines, "*/journal.jsonl")
            case "booting":
                return _any(machines, "*/agent.log")
            case "forming":
                return _any(machines, "*/session")
            case "starting":
                return _any(machines, "*/started.json")
            case "training":
                return self._step() >= kill.step
            case "checkpointing":  # its data lies there, its pointer has not moved
                number = 1 + kill.step % 2  # a fast machine writes one on its way, and one at the end
                return len(list((data / "objects").glob("**/final/*/data"))) >= number
            case "draining":
                return _any(machines, "*/gen/*/order")
            case "launching again":
                return len(list(machines.glob("*/journal.jsonl"))) > JOB["resources"]["nodes"]  # type: ignore[index]
            case "finishing":  # the last step is done: what remains is the export, the final checkpoint, the end
                return self._step() >= STEPS
            case "settling":
                return any(life.ended for life in witness.lives(data))
        raise AssertionError(kill.phase)

    def _step(self) -> int:
        """How far the ranks are, by their own files."""
        files = self.service.data.glob("cloud/machines/*/gen/*/metrics.jsonl")
        return max((_last_step(file) for file in files), default=0)

    def _strike(self, kill: Kill) -> bool:
        """Kill it, if it lives at this moment."""
        if kill.target == "up":
            self.service.kill()
            self._note(f"killed up, in phase {kill.phase}{self._between()}; started again after {kill.restart_s:.1f} s")
            time.sleep(kill.restart_s)
            self.service.start()
            self._note("up is back")
            return True
        victims = self._victims(kill.target)
        if not victims:
            return False
        victim = victims[self.plan.pick % len(victims)]
        if kill.target == "redis":
            wipe(self.service.data / "redis" / "redis.sock")
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self._note(f"killed {kill.target} (pid {victim}), in phase {kill.phase}{self._between()}")
        return True

    def _between(self) -> str:
        """Whether the kill came between a fact and the commit that records it: machines, uploads."""
        launching = witness.ids(self.database_url, "SELECT id FROM machines WHERE state IN ('planned', 'launching')")
        launches = len(launching & {life.token for life in witness.lives(self.service.data)})
        uploaded = len(list((self.service.data / "objects").glob("**/final/*/manifest.json")))
        uploads = uploaded - len(witness.ids(self.database_url, "SELECT id FROM checkpoints"))
        words = [f"{launches} launches"] * (launches > 0) + [f"{uploads} uploads"] * (uploads > 0)
        return f" (before the commit of {' and '.join(words)})" if words else ""

    def _victims(self, target: str) -> list[int]:
        if target in ("agent", "rank", "rank-server"):
            return sorted(pid for pid in machine_processes(self.service.data) if witness.role(pid) == target)
        child = self.service.find_child(target)
        return [] if child is None else [child]

    def _preempt(self) -> int | None:
        """The provider takes a machine, with three seconds' notice. None once it does: its host may be down."""
        try:
            host = json.loads((self.service.data / "cloud" / "machinehost.json").read_text())
            with httpx.Client(base_url=host["url"], headers={"Authorization": f"Bearer {host['key']}"}) as http:
                alive = [one["id"] for one in http.get("/machines").json()["machines"] if one["state"] == "running"]
                taken = sorted(alive)[self.plan.pick % len(alive)]
                http.post(f"/machines/{taken}/preempt", json={"notice_s": 3}).raise_for_status()
        except (OSError, ValueError, httpx.HTTPError, ZeroDivisionError):
            return self.plan.preempt_step
        self._note(f"the provider takes {taken}, at step {self._step()}")
        return None

    def _is_over(self) -> bool:
        """Whether the job is settled, as far as anybody answers. Not asked while machines live."""
        known = witness.lives(self.service.data)
        if not known or any(life.ended is None for life in known):
            return False
        with contextlib.suppress(ServiceUnreachable, ServiceError):
            return self.service.client.jobs().jobs[0].settled_at is not None
        return False

    def _settled(self, job: object) -> rest.Job:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(ServiceUnreachable):
                found = self.service.client.job(job)
                if found.settled_at is not None:
                    return found
                if time.monotonic() > deadline:
                    self._tell()
                assert time.monotonic() < deadline, f"not settled in {PATIENCE_S:.0f} s: {found.status_text}"
            assert time.monotonic() < deadline + 30, "the service does not answer any more"
            time.sleep(0.2)

    def _tell(self) -> None:
        """What became of machines and generations, as their own files have it."""
        zero = time.time() - (time.monotonic() - self.submitted)
        for life in sorted(witness.lives(self.service.data), key=lambda life: life.launched):
            end = f"{life.ended / 1e6 - zero:.3f} s ({life.cause})" if life.ended else "no end"
            say(f"  attempt {life.attempt} slot {life.slot}: {life.launched / 1e6 - zero:.3f} s to {end}")
        for generation, steps in witness.trained(self.service.data):
            begin, end = min(at for at, _ in steps.values()) - zero, max(at for at, _ in steps.values()) - zero
            say(f"  generation {generation}: steps {min(steps)} to {max(steps)}, {begin:.3f} s to {end:.3f} s")

    def _note(self, what: str) -> None:
        say(f"{time.monotonic() - self.submitted:7.3f} s  {what}")


def wipe(socket_path: Path) -> None:
    """Make the embedded Redis forget everything, if it lives."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(socket_path))
        connection.sendall(b"FLUSHALL\r\n")
        connection.recv(16)


def say(what: str) -> None:
    print(what, flush=True)


def _any(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None


def _last_step(metrics: Path) -> int:
    """The step of the last whole line of a file of metrics; 0 if there is none yet."""
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _odd(steps: list[int]) -> list[int]:
    """The first steps that are missing, twice there or out of order."""
    return [at for at, step in enumerate(steps, 1) if at != step][:5] or steps[-5:]


if __name__ == "__main__":
    sys.exit(main())
