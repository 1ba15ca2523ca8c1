# SPDX-License-Identifier: Apache-2.0
"""Real images over the whole path: from a folder of JPEGs to a model that scores outside what the job says.

    python -m tests.soak.images --seed N --data FOLDER

FOLDER is an ImageFolder (`train/CLASS/…` beside `test/CLASS/…`), or holds `cifar10-jpeg.tar.xz`, of which 3,000
images are unpacked into .soak/. A gang of two machines trains on them, one is taken back halfway, and the exported
model is scored in plain PyTorch on the validation images.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from uuid import UUID

from shoestring import Client

from tests import servers
from tests.e2e import witness
from tests.e2e.service import ROOT, Service

NEEDS_DATA = True
ARCHIVE = "cifar10-jpeg.tar.xz"
PER_CLASS = {"train": 250, "test": 50}
LEAST_IMAGES = 2_000
TIMES_CHANCE = 2.5
"""So much better than guessing it must be: a few epochs on a few thousand images."""

SCORE = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
model, images = Path(sys.argv[1]), Path(sys.argv[2])
card = json.loads((model / "model.json").read_text())
height, width = card["input"]["shape"][2:]
net = torch.export.load(model / "model.pt2").module()
right = 0
val = json.loads((model / "split.json").read_text())["val"]
for name in val:
    image = Image.open(images / name).convert("RGB")
    assert image.size == (width, height)
    inputs = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    right += card["classes"][net(inputs).argmax().item()] == Path(name).parts[-2]
print(right / len(val))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shoestring-images-"))
    print(f"seed {options.seed}, in {folder}", flush=True)
    prove(image_folder(options.data), options.seed, folder)
    shutil.rmtree(folder)  # a broken run's is left to look at
    return 0


def image_folder(data: Path) -> Path:
    """The ImageFolder at `data`, or the one in the archive there, unpacked."""
    if not (data / ARCHIVE).exists():
        return data.resolve()
    target = ROOT / ".soak" / "cifar10"
    if not target.exists():
        draft = Path(tempfile.mkdtemp(prefix="cifar10-", dir=_made(target.parent)))
        with tarfile.open(data / ARCHIVE) as archive:
            archive.extractall(draft, members=_first_of_each_class(archive), filter="data")
        draft.replace(target)
    return target


def prove(images: Path, seed: int, folder: Path) -> None:
    """Train on `images` and judge the outcome. Raises AssertionError."""
    files = [file for file in images.rglob("*") if file.is_file()]
    assert len(files) >= LEAST_IMAGES, f"only {len(files)} images in {images}"
    options = ("--budget", "5.00", "--slots", "2", "--data-root", str(images))
    service = Service(folder / "service", servers.free_port(), options=options)
    service.start()
    try:
        client = service.client
        job = client.submit(
            {
                "recipe": "imagefolder/resnet9",
                "data": {"train": str(images)},
                "params": {"epochs": 8, "width": 16, "batch_size": 64, "seed": seed},
                "resources": {"nodes": 2, "spot": "only"},
            }
        )
        service.wait(job.id, lambda found: (found.progress.fraction or 0) > 0.4, within_s=300)
        machine = next(one for one in client.attempts(job.id).attempts[-1].machines if one.slot == seed % 2)
        client.preempt(machine.id, notice_s=30)
        done = service.settled(job.id, within_s=600)
        assert done.end_reason == "succeeded", done.status_text
        attempts = client.attempts(job.id)
        assert [attempt.trained for attempt in attempts.attempts] == [True, True]
        assert attempts.rolled_back_steps == 0
        assert attempts.steps == done.progress.steps_total
        assert done.result is not None
        accuracy = done.result["val/acc"]
        model = download(client, job.id, folder / "model")
        classes = json.loads((model / "model.json").read_text())["classes"]
        print(f"{len(files)} images of {len(classes)} classes: accuracy {accuracy:.3f}", flush=True)
        assert accuracy >= TIMES_CHANCE / len(classes)
        apart = images / "test"
        assert abs(score(model, apart if apart.is_dir() else images) - accuracy) < 0.002
    finally:
        service.stop()
    witness.require_one_machine_a_slot(service.data)
    witness.require_none_alive(service.data)
    assert str(witness.spent_usd(service.data, str(job.id))) == done.cost.spent.amount


def download(client: Client, job: UUID, folder: Path) -> Path:
    """The job's files in a new folder."""
    folder.mkdir()
    for artifact in client.artifacts(job).artifacts:
        client.download(artifact, folder / artifact.name)
    return folder


def score(model: Path, images: Path) -> float:
    """Accuracy on the validation files, which split.json names below `images`, worked out without our code."""
    scored = subprocess.run(
        [sys.executable, "-c", SCORE, str(model), str(images)], capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": ""}, cwd=model,
    )  # fmt: skip
    return float(scored.stdout)


def _first_of_each_class(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    taken: dict[str, int] = {}
    chosen = []
    for member in archive:
        part, *rest = Path(member.name).parts[-3:]
        folder = str(Path(member.name).parent)
        if member.isfile() and len(rest) == 2 and taken.get(folder, 0) < PER_CLASS.get(part, 0):
            taken[folder] = taken.get(folder, 0) + 1
            chosen.append(member)
    return chosen


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
