# SPDX-License-Identifier: Apache-2.0
"""This machine's GPU: CIFAR-10 to target by us and by the peers' own code in turn, ResNet-50's images/s, JPEGs decoded.

    make bench ONLY=gpu DATA=folder of CIFAR-10 [IMAGES=folder of JPEGs] [PEERS=folder] [SEEDS=5] [ROUNDS=2]

The peers' code is fetched into .peers/, or lies in PEERS (cifar10-airbench and cifar10-fast). Each round runs our
SEEDS and then the peer's, in a process each; a first run in it warms up and doesn't count. Without a GPU everything is
rehearsed on the CPU with tiny sizes, which proves that the command works and says nothing of speed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from shoestring_core import recipes
from shoestring_trainer.agent.launch_env import rank_environment

from bench.trainer_cpu import ROOT

GPU = torch.cuda.is_available()
SEEDS, ROUNDS = (int(os.environ.get(name, default)) for name, default in (("SEEDS", "5"), ("ROUNDS", "2")))
RUN_S = 3600
CLONES = {
    "cifar10-airbench": (
        "https://github.com/KellerJordan/cifar10-airbench",
        "f1c599c4af24aca803e3e65a6a7e52a502e09d0e",
    ),
    "cifar10-fast": ("https://github.com/davidcpage/cifar10-fast", "f79e8b89bb2994b5caaaf7289c68903d15a37c2e"),
}


class Race(NamedTuple):
    """A recipe against the code it comes from. target: the accuracy that counts as reached."""

    recipe: str
    target: float
    role: str
    peer: str


RACES = [
    Race("cifar10/airbench94", 0.94, "airbench", "cifar10-airbench/legacy/airbench94.py"),
    Race("cifar10/airbench94-muon", 0.94, "airbench", "cifar10-airbench/airbench94_muon.py"),
    Race("cifar10/airbench95", 0.95, "airbench", "cifar10-airbench/legacy/airbench95.py"),
    Race("cifar10/airbench96", 0.96, "airbench", "cifar10-airbench/legacy/airbench96.py"),
    Race("cifar10/page-resnet9", 0.94, "page", "cifar10-fast"),
]


def main() -> list[str]:
    given = os.environ.get("DATA")
    if GPU and not given:
        return ["left out: it needs CIFAR-10; set DATA to the folder that holds cifar-10-batches-bin"]
    folder = Path(tempfile.mkdtemp(prefix="shoestring-gpu-"))
    data = Path(given).resolve() if GPU and given else tiny_cifar10(folder / "tiny")
    convert(data, folder)
    peers, notes = fetch_peers()
    lines = []
    for race in RACES:
        lines += run_race(race, data, folder, peers)
        print("\n".join(lines[-3:]), flush=True)
    images = os.environ.get("IMAGES")
    jpegs = Path(images).resolve() if images else draw_jpegs(folder / "jpegs")
    kind = "JPEG files" if images else "JPEG files, drawn ones of 500 x 375"
    lines += resnet50(jpegs, kind, folder)
    lines += decoding(jpegs, kind, folder)
    return [card(), *lines, *notes] if GPU else [rehearsed(lines), *notes]


def rehearsed(lines: Sequence[str]) -> str:
    """What is kept of a run without a GPU: that it ran, and no figure."""
    missing = [line for line in lines if "not here" in line]
    against = "" if missing else " against the peers' code"
    ran = (
        f"{len(RACES)} races{against}, ResNet-50 at three sizes and Pillow's decoding ran on the CPU, so small that no "
        "figure is kept; nvJPEG needs a GPU and did not run"
    )
    return "; ".join([f"no GPU at hand: {ran}", *missing])


def card() -> str:
    device = torch.cuda.get_device_properties(0)
    return f"{device.name}, {device.total_memory >> 30} GiB, torch {torch.__version__}, CUDA {torch.version.cuda}"


def run_race(race: Race, data: Path, folder: Path, peers: Path) -> list[str]:
    """A recipe's lines: ours, the peer's, and how they compare."""
    rounds, seeds = (ROUNDS, SEEDS) if GPU else (1, 1)
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    peer = peers / race.peer
    for number in range(rounds):
        numbers = [str(1 + number * seeds + seed) for seed in range(seeds)]
        ours += run("ours", write_task(race.recipe, data), numbers, folder)
        if peer.exists():
            theirs += run(race.role, peer, numbers, folder)
    lines = [describe(f"{race.recipe}, ours", ours, race.target)]
    if not theirs:
        return [*lines, f"{race.recipe}: the peer's code is not here ({race.peer})"]
    ratio = statistics.median(one["seconds"] for one in theirs) / statistics.median(one["seconds"] for one in ours)
    return [
        *lines,
        describe(f"{race.recipe}, {race.peer}", theirs, race.target),
        f"{race.recipe}: the peer's code takes {ratio:.2f} times our time for a run (medians, in turn)",
    ]


def describe(name: str, runs: Sequence[dict[str, float]], target: float) -> str:
    accuracies = [run["accuracy"] for run in runs]
    spread = f" ± {statistics.stdev(accuracies):.2%}" if len(runs) > 1 else ""
    seconds, whole = (statistics.median(run[name] for run in runs) for name in ("seconds", "whole_s"))
    reached = sum(accuracy >= target for accuracy in accuracies)
    return (
        f"{name}: {statistics.mean(accuracies):.2%}{spread}, {reached} of {len(runs)} reach {target:.0%}; "
        f"{seconds:.2f} s training with the final evaluation, {whole:.2f} s with loading and saving (medians)"
    )


def write_task(recipe: str, data: Path) -> Path:
    """Our task for one process of runs."""
    defaults = recipes.resolve(recipe, {})
    params: dict[str, Any] = {"epochs": defaults["epochs"], "eval_every_epochs": 10_000}
    if not GPU:
        params |= {"epochs": 1, "batch_size": 64, "verify_checksums": False}
    folder = Path(tempfile.mkdtemp(prefix="shoestring-gpu-"))
    task = {
        "format": 1, "job": "bench", "generation": 1, "recipe": recipe, "params": params, "seed": 1,
        "precision": "auto", "data": {"train": str(data)},
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(task))
    return folder / "task.json"


def resnet50(jpegs: Path, kind: str, folder: Path) -> list[str]:
    lines = []
    for row in run("resnet50", jpegs, [], folder):
        shares = row["share_of_peak"]
        told = [
            f"{rate:.1f} images/s from {kind if source == 'files' else source}"
            + (f" ({shares[source]:.1%} of the card's peak)" if source in shares else "")
            for source, rate in row["images_per_s"].items()
        ]
        lines.append(f"ResNet-50, {row['size']} px, {row['precision']}: {'; '.join(told)}")
    return lines


def decoding(jpegs: Path, kind: str, folder: Path) -> list[str]:
    """Lines of what decoding before training takes, by each decoder that this machine has."""
    lines = []
    for row in run("decoding", jpegs, [], folder):
        told = [f"{rate:.0f} images/s by {decoder}" for decoder, rate in row["images_per_s"].items()]
        lines.append(f"{kind} decoded to {row['size']} px: {'; '.join(told)}{row['left_out']}")
    return lines


def run(role: str, place: Path, seeds: Sequence[str], folder: Path) -> Any:
    rooms = os.pathsep.join(str(path) for path in (ROOT, ROOT / "core", ROOT / "trainer"))
    environment = os.environ | rank_environment(1, len(os.sched_getaffinity(0))) | {"PYTHONPATH": rooms}
    command = [sys.executable, "-m", "bench.gpu_runs", role, str(place), *seeds]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=RUN_S)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def fetch_peers() -> tuple[Path, list[str]]:
    """The folder of the peers' code, and what couldn't be fetched."""
    if given := os.environ.get("PEERS"):
        return Path(given).resolve(), []
    peers, notes = ROOT / ".peers", []
    for name, (repository, commit) in CLONES.items():
        if (peers / name).exists():
            continue
        clone = [["git", "clone", "-q", f"https://github.com/{repository}", str(peers / name)]]
        clone += [["git", "-C", str(peers / name), "checkout", "-q", commit]]
        for command in clone:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                notes.append(f"{name} could not be fetched ({done.stderr.strip()[-200:]}); give its folder in PEERS")
                break
    return peers, notes


def convert(data: Path, folder: Path) -> None:
    """CIFAR-10 as cifar10-airbench caches it: folder/cifar10/{train,test}.pt."""
    place = next(path for path in (data / "cifar-10-batches-bin", data) if (path / "test_batch.bin").exists())
    (folder / "cifar10").mkdir()
    for name, parts in (("train", [f"data_batch_{number}" for number in range(1, 6)]), ("test", ["test_batch"])):
        content = np.concatenate([np.fromfile(place / f"{part}.bin", np.uint8).reshape(-1, 3073) for part in parts])
        pixels = content[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = torch.from_numpy(content[:, 0].astype(np.int64))
        saved = {"images": torch.from_numpy(pixels.copy()), "labels": labels, "classes": [str(n) for n in range(10)]}
        torch.save(saved, folder / "cifar10" / f"{name}.pt")


def tiny_cifar10(folder: Path) -> Path:
    """Noise in the layout of CIFAR-10, a few hundred images."""
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    draw = np.random.default_rng(1)
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        content = draw.integers(0, 256, (64, 3073), dtype=np.uint8)
        content[:, 0] %= 10
        content.tofile(folder / "cifar-10-batches-bin" / f"{name}.bin")
    return folder


def draw_jpegs(folder: Path, count: int = 64) -> Path:
    """JPEG files of the size and quality of ImageNet's median image."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    print("\n".join(main()))
