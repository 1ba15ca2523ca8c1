# SPDX-License-Identifier: Apache-2.0
"""CPU seconds of a whole training by airbench94-muon and by the code that it reproduces: a part of bench/trainer_cpu.

    python -m bench.source_cpu ours|source FOLDER fp32|bf16      one training; prints its seconds of CPU

The source's code runs as it is but for names of the GPU, and in bf16 by autocast, as ours. Counted is what a process
takes from the loaded libraries to the last accuracy: reading images, whitening, an evaluation each epoch, test-time
augmentation; of ours also its metrics, its log of samples and its last checkpoint, but not the exported models.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from shoestring_trainer.agent.launch_env import rank_environment

from bench.peers import ROOT, convert_cifar10, fetch_references, write_noise_cifar10

RECIPE, SCRIPT = "cifar10/airbench94-muon", "cifar10-airbench/airbench94_muon.py"
BATCH, EPOCHS, IMAGES_PER_FILE = 500, 8, 400
ROUNDS = int(os.environ.get("ROUNDS", "3"))
PRECISIONS = ("fp32", "bf16")
TIMEOUT_S = 1800


def compare() -> list[str]:
    """Return the lines of RESULTS.md: in each precision, both in turn."""
    references, notes = fetch_references("cifar10-airbench")
    script = references / SCRIPT
    if not script.exists():
        return [f"{RECIPE} alone: skipped, the source's code is missing ({SCRIPT})", *notes]
    folder = Path(tempfile.mkdtemp(prefix="shoestring-bench-"))
    convert_cifar10(write_noise_cifar10(folder / "data", IMAGES_PER_FILE), folder)
    (folder / "source.py").write_text(script.read_text())
    lines = []
    for precision in PRECISIONS:
        rounds = [in_turn(folder, precision, number) for number in range(ROUNDS)]
        lines.append(describe(precision, rounds))
        print(lines[-1], flush=True)
    return lines


def in_turn(folder: Path, precision: str, number: int) -> dict[str, float]:
    """Return the seconds of CPU of both, in one round; rounds begin with one or the other."""
    roles = list(ROLES) if number % 2 == 0 else list(reversed(ROLES))
    packages = os.pathsep.join(str(path) for path in (ROOT, ROOT / "core", ROOT / "trainer"))
    environment = os.environ | rank_environment(1, len(os.sched_getaffinity(0))) | {"PYTHONPATH": packages}
    seconds = {}
    for role in roles:
        command = [sys.executable, "-m", "bench.source_cpu", role, str(folder), precision]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
        if result.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{result.stderr[-3000:]}")
        seconds[role] = float(result.stdout)
    return seconds


def describe(precision: str, rounds: list[dict[str, float]]) -> str:
    ours, source = (statistics.median(round_[role] for round_ in rounds) for role in ROLES)
    ratios = sorted(round_["ours"] / round_["source"] for round_ in rounds)
    verdict = "holds" if statistics.median(ratios) <= 1.0 else "MISSED"
    return (
        f"{RECIPE} alone, {EPOCHS} epochs of {5 * IMAGES_PER_FILE} images in batches of {BATCH}, {precision}: "
        f"{ours:.1f} s of CPU, the source's own code {source:.1f} (medians of {len(rounds)} rounds, in turn); "
        f"ours / source {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f} (bound ≤ 1: {verdict})"
    )


def ours(folder: Path, precision: str) -> float:
    from shoestring_trainer.training import loop
    from shoestring_trainer.training.stop_listener import StopListener
    from shoestring_trainer.training.task import StepCounter, read_task

    loop.build_artifacts = lambda *_, **__: {}  # type: ignore[attr-defined]
    run = Path(tempfile.mkdtemp(dir=folder))
    params = {"epochs": EPOCHS, "batch_size": BATCH, "verify_checksums": False, "eval_every_epochs": 1}
    task = {
        "format": 1, "job": "bench", "generation": 1, "recipe": RECIPE, "params": params, "seed": 1,
        "precision": precision, "data": {"train": str(folder / "data")},
    }  # fmt: skip
    (run / "task.json").write_text(json.dumps(task))
    began = time.process_time()
    loop.train(read_task(run / "task.json"), StopListener(run / "order", lambda: os._exit(1)), StepCounter())
    return time.process_time() - began


def source(folder: Path, precision: str) -> float:
    import torch
    from torch import Tensor

    from bench.gpu_runs import CpuEvent, without_gpu

    script = folder / "source.py"
    text = without_gpu(script.read_text())
    text = text.replace("batch_size = 64", f"batch_size = {BATCH}").replace("ceil(1 * len(", f"ceil({EPOCHS} * len(")
    os.chdir(folder)  # where it looks for its images
    sys.argv = [str(script)]  # it reads its own source
    names = {"__name__": "peer", "CpuEvent": CpuEvent}
    exec(compile(text, script.name, "exec"), names)
    model = names["CifarNet"]().to(memory_format=torch.channels_last)  # type: ignore[operator]
    if precision == "bf16":
        forward = model.forward

        def autocast(*images: Tensor, **options: bool) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits: Tensor = forward(*images, **options)
            return logits.float()

        model.forward = autocast
    began = time.process_time()
    names["main"](1, model)  # type: ignore[operator]
    return time.process_time() - began


ROLES: dict[str, Callable[[Path, str], float]] = {"ours": ours, "source": source}


if __name__ == "__main__":
    role, place, chosen = sys.argv[1:]
    with contextlib.redirect_stdout(io.StringIO()):
        cpu_s = ROLES[role](Path(place), chosen)
    print(cpu_s, flush=True)
    os._exit(0)  # not through the interpreter's end, which joins threads of libraries
