# SPDX-License-Identifier: Apache-2.0
"""Real training processes for tests: forked by a rank server, as on a machine, or started by torchrun."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from shoestring_trainer.agent.launch_env import distributed_environment, rank_environment, torchrun_command
from shoestring_trainer.rank_server.client import RankProcess, RankServerClient

from tests.servers import free_port, until

SCRIPT_VARIABLE, BARE_VARIABLE = "SHOESTRING_TEST_SCRIPT", "SHOESTRING_TEST_BARE"  # see scripted_ranks.py
ROOT = Path(__file__).parents[3]
PACKAGE_FOLDERS = [str(ROOT / package) for package in ("core", "trainer")]
PRELOADED = (
    "tests.trainer.training.scripted_ranks", "shoestring_trainer.training.vision_compat", "torch.export._trace",
    "torch._inductor.ir", "sympy.combinatorics", "sympy.tensor.tensor", "PIL.JpegImagePlugin", "PIL.PngImagePlugin",
)  # fmt: skip
"""What each rank would import by itself in a second of CPU, most of it to export the model."""

RANKS_PATIENCE_S = 600.0
"""How long tests wait for ranks, which yield to all others (nice 10): beside a load of 17 on two cores each rank gets a
fiftieth of a core, and a gang that alone takes 15 s has not ended after 120 s."""

# Small and quick, with everything on that a resume could get wrong.
DIGITS = {
    "epochs": 4, "batch_size": 16, "width": 4, "dropout": 0.2, "momentum": 0.9, "rotate": 15, "translate": 1,
    "eval_every_epochs": 2,
}  # fmt: skip


@dataclass
class Gang:
    """One generation: a folder for each node, and its processes: ranks of the rank server, or a torchrun per node."""

    folders: list[Path]
    processes: list[RankProcess | subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def first(self) -> Path:
        return self.folders[0]

    def wait(self, deadline_s: float = RANKS_PATIENCE_S) -> list[int]:
        """Exit codes of the processes."""
        return [process.wait(deadline_s) for process in self.processes]

    def metrics(self) -> list[dict]:
        return _lines(self.first / "metrics.jsonl")

    def events(self, name: str) -> list[dict]:
        return [event for event in _lines(self.first / "events.jsonl") if event["event"] == name]

    def exits(self) -> list[dict]:
        """What each rank left behind, by rank."""
        words = [json.loads(path.read_text()) for folder in self.folders for path in folder.glob("exit-*.json")]
        return sorted(words, key=lambda word: word["rank"])

    def until_step(self, step: int, deadline_s: float = RANKS_PATIENCE_S) -> None:
        def there() -> bool:
            ended = [process.poll() for process in self.processes]
            assert not any(ended), (ended, self.logs())
            lines = self.metrics()
            return bool(lines) and lines[-1]["step"] >= step

        until(there, deadline_s)

    def order_stop(self, node: int = 0) -> None:
        draft = self.folders[node] / "order.tmp"
        draft.write_text('{"order": "checkpoint_and_stop"}')
        draft.replace(self.folders[node] / "order")

    def rank_pids(self) -> list[int]:
        """Training processes that live, by rank."""
        return [pid for process in self.processes for pid in _rank_pids(process)]

    def logs(self) -> str:
        return "\n".join(path.read_text() for folder in self.folders for path in folder.glob("log-*.txt"))

    def checkpoint(self) -> dict[str, str]:
        """The newest checkpoint's two paths, as a task's `resume` wants them."""
        event = self.events("checkpoint")[-1]
        return {"data": str(self.first / event["data"]), "manifest": str(self.first / event["manifest"])}

    def manifest(self) -> dict:
        return json.loads(Path(self.checkpoint()["manifest"]).read_text())

    def part(self, name: str) -> bytes:
        """One part of the newest checkpoint."""
        place = next(part for part in self.manifest()["parts"] if part["name"] == name)
        content = Path(self.checkpoint()["data"]).read_bytes()
        return content[place["offset"] : place["offset"] + place["bytes"]]

    def state_hashes(self) -> dict[str, str]:
        """SHA-256 of the parameters and buffers, the optimizer, the average and the rest, in the newest checkpoint."""
        wanted = ("model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json")
        return {part["name"]: part["sha256"] for part in self.manifest()["parts"] if part["name"] in wanted}


@contextmanager
def gang(
    folder: Path, *, nodes: int = 1, procs: int = 1, threads: Sequence[int] = (1,), torchrun: bool = False,
    alone: bool = False, script: Path | None = None, bare: bool = False, server: RankServerClient | None = None, **task,
):  # fmt: skip
    """Start a generation in `folder`; whatever still runs at the end is killed.

    threads   OMP_NUM_THREADS of each node, the first's for all that follow the last
    torchrun  start new processes by torchrun, as a user does by hand
    alone     without a launcher's variables, as `python -m shoestring_trainer train` starts it by hand
    script    run this file instead of the trainer's own module
    bare      leave the exported models and predictions out of the final checkpoint, half the CPU of a small run: for
              tests of its bits and curves. Both are for ranks of the test process's own server
    server    forks the ranks; by default the one of this test process
    """
    text = {"format": 1, "job": "job", "generation": 1, "recipe": "digits/quickstart", "params": DIGITS, "seed": 1}
    port = free_port()
    started = Gang([folder / f"node-{node}" for node in range(nodes)])
    try:
        for node, run in enumerate(started.folders):
            run.mkdir(parents=True)
            (run / "task.json").write_text(json.dumps(text | {"precision": "fp32"} | task))
            count = threads[node] if node < len(threads) else threads[0]
            environment = base_environment() | rank_environment(1, count, interface="lo")
            if script:
                environment[SCRIPT_VARIABLE] = str(script)
            if bare:
                environment[BARE_VARIABLE] = "1"
            place = {
                "nodes": nodes, "node_rank": node, "procs_per_node": procs, "master_addr": "127.0.0.1",
                "master_port": port,
            }  # fmt: skip
            log = run / "log-launch.txt"
            if torchrun:
                started.processes.append(_start_torchrun(run, place, environment, log))
                continue
            for local_rank in range(procs):
                variables = {} if alone else distributed_environment(**place, local_rank=local_rank)
                started.processes.append(
                    (server or rank_server()).start_rank(
                        [str(run / "task.json")], environment=environment | variables, folder=run, log=log
                    )
                )
        yield started
    finally:
        for process in started.processes:
            kill(process)


@functools.cache
def rank_server() -> RankServerClient:
    """The one of this test process, with which it ends. Its ranks share more imports than those of a machine."""
    log = Path(tempfile.gettempdir()) / f"shoestring-tests-rank-server-{os.getpid()}.log"
    environment = base_environment() | rank_environment(1, 1)
    environment["PYTHONPATH"] += f"{os.pathsep}{ROOT}"
    server = RankServerClient(environment, log, modules=PRELOADED)
    server.start()
    atexit.register(log.unlink, missing_ok=True)
    return server


def base_environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(PACKAGE_FOLDERS)}


def kill(process: RankProcess | subprocess.Popen[bytes]) -> None:
    """End a rank, or a torchrun and its ranks."""
    while process.poll() is None:
        pids = _rank_pids(process) + ([process.pid] if isinstance(process, subprocess.Popen) else [])
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(TimeoutError, subprocess.TimeoutExpired):
            process.wait(0.5)


def _start_torchrun(folder: Path, place: dict, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    command = torchrun_command(folder / "task.json", **place, python=sys.executable)
    with log.open("wb") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)


def _rank_pids(process: RankProcess | subprocess.Popen[bytes]) -> list[int]:
    if process.poll() is not None:
        return []
    if isinstance(process, RankProcess):
        return [process.process.pid] if process.process else []
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def finished(folder: Path, **options) -> Gang:
    """A generation that ran to its end."""
    with gang(folder, **options) as run:
        codes = run.wait()
        assert not any(codes), run.logs()
    return run


def _lines(path: Path) -> list[dict]:
    """The whole lines of a file that may be growing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
