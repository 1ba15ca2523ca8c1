# SPDX-License-Identifier: Apache-2.0
"""What bench/gpu runs, each in a process of its own, with its figures as one line of JSON at the end:

    python -m bench.gpu_runs ours TASK SEED…            the trainer itself, run after run in one process
    python -m bench.gpu_runs airbench SCRIPT SEED…      a script of KellerJordan/cifar10-airbench, where its data lies
    python -m bench.gpu_runs page FOLDER SEED…          davidcpage/cifar10-fast's dawn.py
    python -m bench.gpu_runs resnet50 FOLDER            ResNet-50 from memory and from JPEG files
    python -m bench.gpu_runs decoding FOLDER            JPEG files to images, by Pillow and by nvJPEG

Where there is no GPU the peers' scripts are taught to do without, and all is tiny: a rehearsal.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from shoestring_trainer.training import vision_compat  # noqa: F401 - lets torchvision in
from shoestring_trainer.training.data.augment import augment
from shoestring_trainer.training.data.decoded_cache import Copies
from shoestring_trainer.training.data.decoding import Frame, decode_file, open_file
from shoestring_trainer.training.data.listing import Listing
from shoestring_trainer.training.data.nvjpeg import Decoder, nvjpeg
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.results.throughput import FORWARD_AND_BACKWARD, flop_per_image, peak_flops
from shoestring_trainer.training.settings import Settings
from torch import Tensor, nn

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SIZES = (128, 224, 288) if GPU else (32, 48, 64)
BATCH, STEPS, BLOCKS = (256, 20, 3) if GPU else (4, 2, 2)
DECODED = 8192 if GPU else 64

Feed = Callable[[], tuple[Tensor, Tensor]]
"""Gives a batch on the device: images_NCHW, float, and labels_N."""


def main(role: str, place: Path, seeds: list[int]) -> int:
    figures = ROLES[role](place, seeds)
    print(json.dumps(figures), flush=True)
    os._exit(0)  # past the threads of loaders and watchers


def ours(task: Path, seeds: list[int]) -> list[dict[str, float]]:
    """Run the task with each seed. The first, of a twentieth of the epochs, warms up and doesn't count."""
    from shoestring_trainer.training.loop import train
    from shoestring_trainer.training.orders import Orders
    from shoestring_trainer.training.task import StepCounter, read_task

    text = json.loads(task.read_text())
    epochs, figures = text["params"]["epochs"], []
    for number, seed in enumerate([0, *seeds]):
        folder = task.parent / f"run-{number}"
        folder.mkdir()
        params = text["params"] | {"epochs": epochs if number else max(1.0, epochs / 20)}
        (folder / "task.json").write_text(json.dumps(text | {"params": params, "seed": seed}))
        began = time.time()
        with contextlib.redirect_stdout(io.StringIO()):
            train(read_task(folder / "task.json"), Orders(folder / "order", lambda: os._exit(1)), StepCounter())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        result, ended = events[-1]["result"], lines[-1]["t"]
        accuracy = result.get("val/acc_tta", result["val/acc"])
        figures.append({"accuracy": accuracy, "seconds": ended - events[0]["t"], "whole_s": time.time() - began})
    return figures[1:]


def airbench(script: Path, seeds: list[int]) -> list[dict[str, float]]:
    """The script's own `main`, its warm-up first; the seconds are those it prints itself."""
    source = script.read_text()
    names: dict[str, Any] = {"__name__": "peer", "__file__": str(script), "Moment": Moment}
    sys.argv = [str(script)]  # it reads itself
    exec(compile(source if GPU else without_gpu(source), script.name, "exec"), names)
    arguments: list[Any] = []
    if "CifarNet" in names:
        model = names["CifarNet"]().to(DEVICE, memory_format=torch.channels_last)
        if GPU:
            model.compile(mode="max-autotune")  # as its last lines do
        arguments = [model]
    figures = []
    for run, seed in enumerate(["warmup", *seeds]):
        torch.manual_seed(run)
        began, told = time.time(), io.StringIO()
        with contextlib.redirect_stdout(told):
            accuracy = names["main"](seed, *arguments)
        row = [cell.strip() for line in told.getvalue().splitlines() if "eval" in line for cell in line.split("|")]
        figures.append({"accuracy": accuracy, "seconds": float(row[-2]), "whole_s": time.time() - began})
    return figures[1:]


def page(folder: Path, seeds: list[int]) -> list[dict[str, float]]:
    """dawn.py as it is, given the images, a name that newer numpy lacks and one for the pandas it doesn't use."""
    import numpy as np

    np.float = float  # type: ignore[attr-defined]
    sys.modules.setdefault("pandas", ModuleType("pandas"))
    sys.path.insert(0, str(folder))
    data = {part: torch.load(f"cifar10/{name}.pt") for part, name in (("train", "train"), ("valid", "test"))}
    images = {part: {"data": each["images"].numpy(), "targets": each["labels"].tolist()} for part, each in data.items()}
    if not GPU:
        for name in ("torch_backend", "dawn_utils"):
            module = ModuleType(name)
            sys.modules[name] = module
            exec(compile(without_gpu((folder / f"{name}.py").read_text()), name, "exec"), module.__dict__)
    import torch_backend  # type: ignore[import-not-found]

    torch_backend.cifar10 = lambda *_: images
    source = (folder / "dawn.py").read_text()
    figures = []
    for seed in seeds:
        torch.manual_seed(seed)
        np.random.seed(seed)
        sys.argv = ["dawn.py"]
        began, told = time.time(), io.StringIO()
        with contextlib.redirect_stdout(told):
            exec(compile(source if GPU else without_gpu(source), "dawn.py", "exec"), {"__name__": "dawn"})
        row = told.getvalue().splitlines()[-1].split()
        figures.append({"accuracy": float(row[-2]), "seconds": float(row[-1]), "whole_s": time.time() - began})
    return figures


def without_gpu(source: str) -> str:
    """A GPU-only script made to run here: names alone change, and its sizes shrink."""
    for name, other in {
        "@torch.compile": "", "torch.half": "torch.float32", ".half()": ".float()", ".cuda()": "", "gpu=0": "gpu='cpu'",
        'torch.device("cuda")': 'torch.device("cpu")', "torch.cuda.synchronize()": "None",
        "synch=torch.cuda.synchronize": "synch=None", "X = G.bfloat16()": "X = G.float()",
        "pin_memory=True": "pin_memory=False",
        "torch.cuda.Event(enable_timing=True)": "Moment()",
        "'batch_size': 1024": "'batch_size': 64", "batch_size = 2000": "batch_size = 64",
        "ceil(8 * len(": "ceil(1 * len(", "batch_size = 512": "batch_size = 64", "epochs = 24": "epochs = 6",
    }.items():  # fmt: skip
        source = source.replace(name, other)
    return re.sub(r"'train_epochs': [0-9.]+", "'train_epochs': 1", source)


class Moment:
    """Stands for a CUDA event."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, later: Moment) -> float:
        return 1e3 * (later.at - self.at)


def resnet50(folder: Path, _: list[int]) -> list[dict[str, Any]]:
    """Images/s of training at each size and precision from memory, then from the JPEG files in `folder`."""
    from torchvision.models import resnet50 as network

    files = jpeg_files(folder)
    figures = []
    for size, precision in itertools.product(SIZES, Precision):
        model = network().to(DEVICE, memory_format=torch.channels_last)
        speed = {"memory": images_per_s(model, precision, from_memory(size))}
        if precision is not Precision.FP32:
            with from_files(files, size) as feed:
                speed["files"] = images_per_s(model, precision, feed)
            if GPU:
                model.compile(mode="max-autotune-no-cudagraphs")
                speed["compiled"] = images_per_s(model, precision, from_memory(size))
        flop = FORWARD_AND_BACKWARD * flop_per_image(network(), (3, size, size), torch.device("cpu"))
        peak = peak_flops(DEVICE, precision)
        share = {name: flop * rate / peak for name, rate in speed.items()} if peak else {}
        figures.append({"size": size, "precision": precision.value, "images_per_s": speed, "share_of_peak": share})
    return figures


def images_per_s(model: nn.Module, precision: Precision, feed: Feed) -> float:
    """Median over blocks of steps; a first block warms up."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=precision is Precision.FP16)
    rates = []
    for _ in range(1 + BLOCKS):
        began = synchronised()
        for _ in range(STEPS):
            images_NCHW, labels_N = feed()
            with precision.autocast(DEVICE):
                logits_NK = model(images_NCHW)
            scaler.scale(F.cross_entropy(logits_NK.float(), labels_N)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        rates.append(BATCH * STEPS / (synchronised() - began))
    return statistics.median(rates[1:])


def synchronised() -> float:
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


FLIP_AND_CROP = Settings(flip=True, crop_padding=4)
BLACK = (0.0, 0.0, 0.0)


def on_device(uint8_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    draws_NK = torch.rand(len(uint8_NCHW), 8, device=DEVICE)
    images_NCHW = augment(uint8_NCHW.to(DEVICE, non_blocking=True), draws_NK, FLIP_AND_CROP, BLACK, 255.0)
    return images_NCHW, torch.zeros(len(uint8_NCHW), dtype=torch.int64, device=DEVICE)


def from_memory(size: int) -> Feed:
    store_NCHW = torch.randint(0, 256, (2 * BATCH, 3, size, size), dtype=torch.uint8, device=DEVICE)
    return lambda: on_device(store_NCHW[torch.randperm(len(store_NCHW), device=DEVICE)[:BATCH]])


@contextlib.contextmanager
def from_files(files: list[Path], size: int) -> Iterator[Feed]:
    """Batches decoded by every core, two batches ahead of the device."""
    endless = itertools.cycle(files)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:

        def begin() -> list[Future[tuple[Tensor, float]]]:
            return [pool.submit(decode_file, next(endless), Frame(size, size)) for _ in range(BATCH)]

        waiting = [begin(), begin()]

        def feed() -> tuple[Tensor, Tensor]:
            waiting.append(begin())
            uint8_NCHW = torch.stack([image.result()[0] for image in waiting.pop(0)])
            return on_device(uint8_NCHW.pin_memory() if GPU else uint8_NCHW)

        yield feed
        pool.shutdown(cancel_futures=True)


def jpeg_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})


def decoding(folder: Path, _: list[int]) -> list[dict[str, Any]]:
    """Images/s that the trainer writes at each size before it trains, from the files in `folder` over and over.

    Pillow decodes in as many threads as torch has here. Where nvJPEG can't, `left_out` says why.
    """
    names = [str(path.relative_to(folder)) for path in itertools.islice(itertools.cycle(jpeg_files(folder)), DECODED)]
    listing = Listing(
        folder, ["even", "odd"], names, [number % 2 for number in range(DECODED)],
        lambda number: open_file(folder / names[number]),
    )  # fmt: skip
    decoders: dict[str, Decoder | None] = {f"Pillow in {torch.get_num_threads()} threads": None}
    left_out = ""
    try:
        decoders["nvJPEG"] = nvjpeg(DEVICE)
    except UserError as error:
        left_out = f"; nvJPEG left out: {error}"
    figures = []
    for size in SIZES:
        rates = {name: decoded_per_s(listing, size, decoder) for name, decoder in decoders.items()}
        figures.append({"size": size, "images_per_s": rates, "left_out": left_out})
    return figures


def decoded_per_s(listing: Listing, size: int, decoder: Decoder | None) -> float:
    """The second time, when the files are in memory and the GPU is awake."""
    settings, few = Settings(image_size=size, decode_device="gpu" if decoder else "cpu"), listing.only([0, 1])
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        copies = Copies(listing, few, settings, {}, Path(scratch), False, True, lambda: None, decoder)
        copies.at(size, False)
        began = time.perf_counter()
        copies.at(size, False)
        return (len(listing) + len(few)) / (time.perf_counter() - began)


ROLES: dict[str, Callable[[Path, list[int]], Any]] = {
    "ours": ours, "airbench": airbench, "page": page, "resnet50": resnet50, "decoding": decoding,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]]))
