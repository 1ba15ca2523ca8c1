# SPDX-License-Identifier: Apache-2.0
"""Judging a service from outside: by the machine host's journals and the process table, never by its own rows."""

from __future__ import annotations

import itertools
import json
import threading
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import sqlalchemy

from tests.e2e.service import journals, machine_processes

US_PER_HOUR = 3_600_000_000


@dataclass(frozen=True)
class Life:
    """One machine as its journal tells it: µs UTC; `ended` None while it lives."""

    job: str
    attempt: int
    slot: int
    token: str
    launched: int
    ended: int | None
    cause: str | None
    price: Decimal
    notice: bool

    @property
    def bill_micro(self) -> int:
        """Micro-dollars: the seconds used at the journaled price, rounded once."""
        assert self.ended is not None
        return self.cost_micro(self.ended)

    def cost_micro(self, until: int) -> int:
        """What it costs if it runs until a moment (µs UTC)."""
        exact = self.price * 1_000_000 * (until - self.launched) / US_PER_HOUR
        return int(exact.to_integral_value(ROUND_HALF_EVEN))


def lives(data: Path) -> list[Life]:
    return [_life(entries) for entries in journals(data) if entries]


def require_one_machine_a_slot(data: Path) -> None:
    """No two machines of one job and slot were ever alive at once."""
    by_slot: dict[tuple[str, int], list[Life]] = {}
    for life in lives(data):
        by_slot.setdefault((life.job, life.slot), []).append(life)
    for slot, mine in by_slot.items():
        mine.sort(key=lambda life: life.launched)
        for before, after in itertools.pairwise(mine):
            overlap = before.ended is None or before.ended > after.launched
            assert not overlap, f"two machines in {slot}: {before}, {after}"


def require_none_alive(data: Path) -> None:
    alive = [life for life in lives(data) if life.ended is None]
    assert not alive, f"still alive by their journals: {alive}"
    assert not machine_processes(data), "processes of machines are left"


def role(pid: int) -> str:
    """What a process of a machine is: init, agent, rank-server, rank or something else."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        name = Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""
    if name == "bwrap\n":  # isolates a rank server
        return ""
    if "shoestring_trainer.rank_server" in command:  # its forks show its command
        return "rank" if name.startswith("rank ") else "rank-server"
    if "shoestring_trainer" in command:
        return "agent" if "agent" in command else ""
    return "init" if "shoestring_trainer.machinehost.init" in command else ""


def generation_of(folder: Path) -> int | None:
    """Of the rank that works in this folder, as /proc shows it: "…/gen/3", after its removal "…/gen/3 (deleted)"."""
    name = folder.name.removesuffix(" (deleted)")
    return int(name) if name.isdecimal() else None


def spent_usd(data: Path, job: str) -> Decimal:
    """What the job's machines cost, by an independent bill from the journals."""
    return Decimal(sum(life.bill_micro for life in lives(data) if life.job == job)) / 1_000_000


def require_one_generation_at_a_time(data: Path) -> None:
    """No step of a generation came before the last step of one before it, by the ranks' own files."""
    for (one, earlier), (next_one, later) in itertools.pairwise(trained(data)):
        last, first = max(at for at, _ in earlier.values()), min(at for at, _ in later.values())
        assert first > last, f"generation {next_one} stepped at {first}, generation {one} still at {last}"


def merged(data: Path) -> dict[int, float]:
    """The loss of each step of the job, by the ranks' own files: a generation takes over from its first step on."""
    curve: dict[int, float] = {}
    for _, steps in trained(data):
        begin = min(steps)
        curve = {step: loss for step, loss in curve.items() if step < begin}
        curve |= {step: loss for step, (_, loss) in steps.items()}
    return curve


def trained(data: Path) -> list[tuple[int, dict[int, tuple[float, float]]]]:
    """Each generation that stepped, in order: when it did each step (unix seconds), and with what loss."""
    found = {}
    for file in (data / "cloud" / "machines").glob("*/gen/*/metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        steps = {
            line["step"]: (line["t"], float(line["v"]["train/loss"])) for line in lines if "train/loss" in line["v"]
        }
        if steps:
            generation = int(file.parent.name)
            assert generation not in found, f"generation {generation} has two ranks 0: {file}"
            found[generation] = steps
    return sorted(found.items())


def require_exact_bills(data: Path, database_url: str) -> None:
    """Each transfer is what an independent bill from the journals gives for its moment; the last one makes it whole.

    A machine that has ended may be taken to run until the service hears of it.
    """
    by_machine: dict[str, list[Any]] = {}
    engine = sqlalchemy.create_engine(database_url)
    with engine.connect() as connection:
        for row in connection.execute(sqlalchemy.text(TRANSFERS)):
            assert row.machine is not None, f"a transfer without a machine: {row}"
            by_machine.setdefault(str(UUID(str(row.machine))), []).append(row)
        held = connection.execute(sqlalchemy.text("SELECT sum(held) FROM accounts")).scalar()
    engine.dispose()
    assert held == 0, f"{held} micro-dollars are still held"
    machines = {life.token: life for life in lives(data)}
    assert set(by_machine) <= set(machines), "transfers for machines that never were"
    for token, life in machines.items():
        posted = 0
        rows = by_machine.get(token, [])
        for number, row in enumerate(rows):
            due = {life.bill_micro}
            if number < len(rows) - 1:
                due = {life.cost_micro(row.at), life.cost_micro(min(row.at, life.ended or row.at))}
            posted += row.amount if row.debit_kind == "job" else -row.amount
            assert posted in due, f"machine {token}: {posted} posted by increment {row.increment}, its bill says {due}"
        assert posted == life.bill_micro, f"machine {token}: {posted} posted, its bill is {life.bill_micro}"


TRANSFERS = """
SELECT t.machine, t.increment, t.amount, t.at, debit.kind AS debit_kind
FROM transfers t JOIN accounts debit ON debit.id = t.debit_account
ORDER BY t.machine, t.at, t.id
"""


def ids(database_url: str, query: str) -> set[str]:
    """The ids that a query finds."""
    engine = sqlalchemy.create_engine(database_url)
    with engine.connect() as connection:
        found = {str(UUID(str(id_))) for id_ in connection.execute(sqlalchemy.text(query)).scalars()}
    engine.dispose()
    return found


class Watch:
    """Looks at the process table all the time: who lives in which slot, and which generations have ranks.

    `broken` names what was seen that may never be; each was seen twice, so that a process on its way out is none.
    A look that fails is raised at the end: a witness that saw nothing more testifies to nothing.
    """

    def __init__(self, data: Path, every_s: float = 0.1) -> None:
        self.broken: list[str] = []
        self.looks = 0
        self._machines = data / "cloud" / "machines"
        self._every_s = every_s
        self._slots: dict[str, tuple[str, int]] = {}
        self._over = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._look_until_it_is_over()
        except Exception as failure:  # noqa: BLE001 - of a thread: `__exit__` raises it
            self._failure = failure

    def _look_until_it_is_over(self) -> None:
        suspected: set[str] = set()
        while not self._over.wait(0.0 if suspected else self._every_s):
            seen = self._look()
            self.broken += sorted((seen & suspected) - set(self.broken))
            suspected = seen
            self.looks += 1

    def _look(self) -> set[str]:
        slots: dict[tuple[str, int], set[str]] = {}
        generations: dict[str, set[int]] = {}
        mark = b"SHOESTRING_MACHINE_DIR=" + str(self._machines).encode() + b"/"
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                variables = (entry / "environ").read_bytes()
                if mark not in variables:
                    continue
                folder = (entry / "cwd").readlink()
            except OSError:
                continue
            machine = variables.split(mark, 1)[1].split(b"\0", 1)[0].decode()
            if slot := self._slot(machine):
                slots.setdefault(slot, set()).add(machine)
                if role(int(entry.name)) == "rank" and (generation := generation_of(folder)) is not None:
                    generations.setdefault(slot[0], set()).add(generation)
        return {f"two machines in slot {slot}: {sorted(them)}" for slot, them in slots.items() if len(them) > 1} | {
            f"ranks of generations {sorted(them)} at once" for them in generations.values() if len(them) > 1
        }

    def _slot(self, machine: str) -> tuple[str, int] | None:
        """Which job and slot a machine was rented for, by its journal's first line. None: its folder is gone."""
        if machine not in self._slots:
            try:
                lines = (self._machines / machine / "journal.jsonl").read_text()
            except FileNotFoundError:
                return None
            tags = json.loads(lines.split("\n")[0])["tags"]
            self._slots[machine] = (tags["job"], int(tags["slot"]))
        return self._slots[machine]


def _life(entries: list[dict[str, Any]]) -> Life:
    launch = next(entry for entry in entries if entry["event"] == "launch")
    end = next((entry for entry in entries if entry["event"] == "end"), None)
    tags = launch["tags"]
    return Life(
        job=tags["job"], attempt=int(tags["attempt"]), slot=int(tags["slot"]), token=launch["token"],
        launched=launch["at"], ended=end and end["at"], cause=end and end["cause"], price=Decimal(launch["price"]),
        notice=any(entry["event"] == "notice" for entry in entries),
    )  # fmt: skip
