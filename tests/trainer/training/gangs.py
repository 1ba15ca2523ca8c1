# SPDX-License-Identifier: Apache-2.0
"""Real training processes for tests, started by the command that a machine's agent uses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shoestring_trainer.agent.launch_env import lone_rank, rank_environment, torchrun_command

from tests.servers import free_port, until

ROOMS = [str(Path(__file__).parents[3] / room) for room in ("core", "trainer")]

# Small and quick, with everything on that a resume could get wrong.
DIGITS = {
    "epochs": 4, "batch_size": 16, "width": 4, "dropout": 0.2, "momentum": 0.9, "rotate": 15, "translate": 1,
    "eval_every_epochs": 2,
}  # fmt: skip


@dataclass
class Gang:
    """One generation: a folder and a launcher for each node, torchrun or the node's only rank itself.

    direct  there is no torchrun
    """

    folders: list[Path]
    direct: bool = True
    launchers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def first(self) -> Path:
        return self.folders[0]

    def wait(self, deadline_s: float = 120) -> list[int]:
        """Exit codes of the launchers."""
        return [launcher.wait(deadline_s) for launcher in self.launchers]

    def metrics(self) -> list[dict]:
        return _lines(self.first / "metrics.jsonl")

    def events(self, name: str) -> list[dict]:
        return [event for event in _lines(self.first / "events.jsonl") if event["event"] == name]

    def exits(self) -> list[dict]:
        """What each rank left behind, by rank."""
        words = [json.loads(path.read_text()) for folder in self.folders for path in folder.glob("exit-*.json")]
        return sorted(words, key=lambda word: word["rank"])

    def until_step(self, step: int, deadline_s: float = 120) -> None:
        def there() -> bool:
            ended = [launcher.poll() for launcher in self.launchers]
            assert not any(ended), (ended, self.logs())
            lines = self.metrics()
            return bool(lines) and lines[-1]["step"] >= step

        until(there, deadline_s)

    def order_stop(self, node: int = 0) -> None:
        draft = self.folders[node] / "order.tmp"
        draft.write_text('{"order": "checkpoint_and_stop"}')
        draft.replace(self.folders[node] / "order")

    def rank_pids(self) -> list[int]:
        """Training processes: the launchers themselves, or their children."""
        if self.direct:
            return [launcher.pid for launcher in self.launchers if launcher.poll() is None]
        children = [
            Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            for launcher in self.launchers
        ]
        return [int(pid) for pids in children for pid in pids]

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
def gang(folder: Path, *, nodes: int = 1, procs: int = 1, script: list[str] | None = None, **task):
    """Start a generation in `folder`; whatever still runs at the end is killed.

    script  run this instead of the trainer's own module (arguments before the task's path)
    """
    text = {"format": 1, "job": "job", "generation": 1, "recipe": "digits/quickstart", "params": DIGITS, "seed": 1}
    port = free_port()
    started = Gang([folder / f"node-{node}" for node in range(nodes)], direct=procs == 1 and script is None)
    environment = os.environ | rank_environment(1, 1, interface="lo") | {"PYTHONPATH": os.pathsep.join(ROOMS)}
    try:
        for node, run in enumerate(started.folders):
            run.mkdir(parents=True)
            (run / "task.json").write_text(json.dumps(text | {"precision": "fp32"} | task))
            if started.direct:
                command, places = lone_rank(
                    run / "task.json", nodes=nodes, node_rank=node, master_addr="127.0.0.1", master_port=port
                )
            else:
                command, places = torchrun_command(
                    run / "task.json", nodes=nodes, node_rank=node, procs_per_node=procs,
                    master_addr="127.0.0.1", master_port=port, python=sys.executable,
                ), {}  # fmt: skip
            if script:
                at = command.index("shoestring_trainer")
                command[at - 1 : at + 2] = script
            with (run / "log-launch.txt").open("wb") as log:
                started.launchers.append(
                    subprocess.Popen(command, env=environment | places, stdout=log, stderr=log, start_new_session=True)
                )
        yield started
    finally:
        for pid in started.rank_pids() if any(launcher.poll() is None for launcher in started.launchers) else []:
            os.kill(pid, signal.SIGKILL)
        for launcher in started.launchers:
            launcher.kill()
            launcher.wait()


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
