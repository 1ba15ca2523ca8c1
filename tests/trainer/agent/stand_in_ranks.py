# SPDX-License-Identifier: Apache-2.0
"""Stands in for torchrun and its ranks: the same arguments and files, no torch. Each rank has a session of its own.

What the ranks do is in the task's `params`: steps, step_s, save_every, die_at, error_at, poison_at, deaf, log_bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def launch(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    for name in ("nnodes", "node-rank", "nproc-per-node", "master-port", "max-restarts"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--master-addr")
    parser.add_argument("-m", dest="module")
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args(arguments)
    print("launching", options.nproc_per_node, flush=True)
    first = options.node_rank * options.nproc_per_node
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, "rank", options.rest[-1]],
            env={**os.environ, "RANK": str(first + local)},
            start_new_session=True,
        )
        for local in range(options.nproc_per_node)
    ]
    signal.signal(signal.SIGTERM, lambda *_: [rank.terminate() for rank in ranks])
    codes = [rank.wait() for rank in ranks]
    return 1 if any(codes) else 0


class Rank:
    def __init__(self, spec: Path, number: int) -> None:
        self.folder, self.number = spec.parent, number
        self.task = json.loads(spec.read_text())
        self.params = {"steps": 20, "step_s": 0.02, "save_every": 0} | self.task["params"]
        self.step, self.lines, self.stop = 0, 0, False
        if resume := self.task["resume"]:
            manifest = json.loads(Path(resume["manifest"]).read_text())
            assert hashlib.sha256(Path(resume["data"]).read_bytes()).hexdigest() == manifest["sha256"]
            self.step = manifest["step"]
        if number == 0:
            self.metrics = (self.folder / "metrics.jsonl").open("w", buffering=1)
            self.events = (self.folder / "events.jsonl").open("w", buffering=1)

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self.told)
        self.event("started", step=self.step, steps_total=self.params["steps"], world_size=1, precision="fp32")
        print(f"\x1b[32mrank {self.number}\x1b[0m from {self.step}", flush=True)
        if size := self.params.get("log_bytes"):
            sys.stdout.buffer.write(b"x" * size)
            sys.stdout.flush()
        while self.step < self.params["steps"]:
            if not self.params.get("deaf") and (self.stop or (self.folder / "order").exists()):
                self.save("order")
                return self.exit("drained")
            self.step += 1
            self.train()
            time.sleep(self.params["step_s"])
            if self.params["save_every"] and self.step % self.params["save_every"] == 0:
                self.save("periodic")
        self.save("final")
        return self.exit("finished")

    def train(self) -> None:
        if self.step == self.params.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.step == self.params.get("error_at"):
            error = {"kind": "user_code", "message": "no such column", "traceback": "Traceback: here"}
            sys.exit(self.exit("error", error))
        if self.number == 0:
            if self.step == self.params.get("poison_at"):
                self.metrics.write('{"t": 1, "step": "two"}\n\x00\xff not json\n')
            loss = "NaN" if self.step == 3 else 1 / self.step
            line = {"t": time.time(), "step": self.step, "epoch": self.step / 10, "v": {"train/loss": loss}}
            self.metrics.write(json.dumps(line) + "\n")
            self.lines += 1
        print(f"rank {self.number} step {self.step}", flush=True)

    def save(self, reason: str) -> None:
        if self.number:
            return
        name = f"ckpt/step-{self.step:09}"
        data = f"weights after {self.step}".encode() * 100
        (self.folder / "ckpt").mkdir(exist_ok=True)
        (self.folder / f"{name}.data").write_bytes(data)
        manifest = {
            "format": 1,
            "step": self.step,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "parts": [],
        }
        (self.folder / f"{name}.json").write_text(json.dumps(manifest))
        extra = {"result": {"val/acc": 0.98}} if reason == "final" else {}
        files = {"data": f"{name}.data", "manifest": f"{name}.json"}
        self.event(
            "checkpoint",
            step=self.step,
            **files,
            final=reason == "final",
            reason=reason,
            lines=self.lines,
            seconds=1.5,
            stop_s=60.0,
            **extra,
        )

    def event(self, name: str, **facts: object) -> None:
        if self.number == 0:
            self.events.write(json.dumps({"t": time.time(), "event": name, **facts}) + "\n")

    def exit(self, outcome: str, error: dict[str, str] | None = None) -> int:
        word = {"rank": self.number, "outcome": outcome, "step": self.step, "t": time.time(), "error": error}
        draft = self.folder / f"exit-{self.number}.tmp"
        draft.write_text(json.dumps(word))
        draft.replace(self.folder / f"exit-{self.number}.json")
        return int(outcome == "error")

    def told(self, *_: object) -> None:
        self.stop = True


def main() -> int:
    if sys.argv[1] != "rank":
        return launch(sys.argv[1:])
    spec, number = Path(sys.argv[2]), int(os.environ["RANK"])
    log = os.open(spec.parent / f"log-rank{number}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return Rank(spec, number).run()


if __name__ == "__main__":
    sys.exit(main())
