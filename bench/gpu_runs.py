# SPDX-License-Identifier: Apache-2.0
"""The runs of bench/gpu, one process each, with the results as one line of JSON at the end:

    python -m bench.gpu_runs ours TASK SEED…            our trainer, run after run in one process
    python -m bench.gpu_runs airbench SCRIPT SEED…      a script of KellerJordan/cifar10-airbench, in its data's folder
    python -m bench.gpu_runs page FOLDER SEED…          davidcpage/cifar10-fast's dawn.py
    python -m bench.gpu_runs steps FOLDER               training steps under torch's profiler
    python -m bench.gpu_runs resnet50 FOLDER            ResNet-50 from memory and from JPEG files
    python -m bench.gpu_runs shards FOLDER              whole training runs of ResNet-50 from shards of the JPEG files
    python -m bench.gpu_runs decoding FOLDER            JPEG decoding by Pillow and by nvJPEG

Without a GPU the reference scripts are patched to run on the CPU, with tiny sizes: a dry run.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from shoestring_trainer.training import vision_compat  # noqa: F401 - makes torchvision importable
from shoestring_trainer.training.data.augment import augment
from shoestring_trainer.training.data.decoded_cache import DecodedCache
from shoestring_trainer.training.data.decoding import ResizeSpec, decode_file
from shoestring_trainer.training.data.image_files import open_image_file
from shoestring_trainer.training.data.image_index import ImageIndex
from shoestring_trainer.training.data.nvjpeg import JpegDecoder, nvjpeg_decoder
from shoestring_trainer.training.distributed.context import find_place
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.results.throughput import FORWARD_AND_BACKWARD, flop_per_image, peak_flops
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.setup import choose_algorithms
from shoestring_trainer.training.step import Trainer
from torch import Tensor, nn

from tests.trainer.training.first_phase import RECIPES, first_phase

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SIZES = tuple(map(int, os.environ.get("SIZES", "128 224 288" if GPU else "32 48 64").split()))
BATCH, STEPS, BLOCKS = (256, 20, 3) if GPU else (4, 2, 2)
DECODED_IMAGES = 8192 if GPU else 64
SHARD_IMAGES, SHARD_EPOCHS, SHARD_SIZES = (16_000, 3, (128, 224)) if GPU else (64, 1, (32,))

NextBatch = Callable[[], tuple[Tensor, Tensor]]
"""Return a batch on the device: images_NCHW, float, and labels_N."""


def main(role: str, path: Path, seeds: list[int]) -> int:
    figures = ROLES[role](path, seeds)
    print(json.dumps(figures), flush=True)
    os._exit(0)  # don't wait for threads of loaders


def ours(task: Path, seeds: list[int]) -> list[dict[str, float]]:
    """Run the task with each seed. A first run, of a twentieth of the epochs, is a warm-up and doesn't count."""
    from shoestring_trainer.training.loop import train
    from shoestring_trainer.training.stop_listener import StopListener
    from shoestring_trainer.training.task import StepCounter, read_task

    text = json.loads(task.read_text())
    epochs, figures = text["params"]["epochs"], []
    for number, seed in enumerate([0, *seeds]):
        folder = task.parent / f"run-{number}"
        folder.mkdir()
        params = text["params"] | {"epochs": epochs if number else max(1.0, epochs / 20)}
        (folder / "task.json").write_text(json.dumps(text | {"params": params, "seed": seed}))
        start = time.time()
        with contextlib.redirect_stdout(io.StringIO()):
            train(read_task(folder / "task.json"), StopListener(folder / "order", lambda: os._exit(1)), StepCounter())
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        result, total_s = events[-1]["result"], time.time() - start
        accuracy = result.get("val/acc_tta", result["val/acc"])
        figures.append({"accuracy": accuracy, "seconds": result["train_and_score_s"], "total_s": total_s})
    return figures[1:]


def airbench(script: Path, seeds: list[int]) -> list[dict[str, float]]:
    """Run the script's own `main`, with a warm-up; the seconds are those that it prints."""
    source = script.read_text()
    names: dict[str, Any] = {"__name__": "peer", "__file__": str(script), "CpuEvent": CpuEvent}
    sys.argv = [str(script)]  # the script reads its own source
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
        start, output = time.time(), io.StringIO()
        with contextlib.redirect_stdout(output):
            accuracy = names["main"](seed, *arguments)
        row = [cell.strip() for line in output.getvalue().splitlines() if "eval" in line for cell in line.split("|")]
        figures.append({"accuracy": accuracy, "seconds": float(row[-2]), "total_s": time.time() - start})
    return figures[1:]


def page(folder: Path, seeds: list[int]) -> list[dict[str, float]]:
    """Run dawn.py unchanged, with the images, a name that newer numpy lacks, and a stub for the unused pandas."""
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
        start, output = time.time(), io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(source if GPU else without_gpu(source), "dawn.py", "exec"), {"__name__": "dawn"})
        row = output.getvalue().splitlines()[-1].split()
        figures.append({"accuracy": float(row[-2]), "seconds": float(row[-1]), "total_s": time.time() - start})
    return figures


def without_gpu(source: str) -> str:
    """Patch a GPU-only script to run on the CPU: only names change, and sizes shrink."""
    for name, other in {
        "@torch.compile": "", "torch.half": "torch.float32", ".half()": ".float()", ".cuda()": "", "gpu=0": "gpu='cpu'",
        'torch.device("cuda")': 'torch.device("cpu")', "torch.cuda.synchronize()": "None",
        "synch=torch.cuda.synchronize": "synch=None", "X = G.bfloat16()": "X = G.float()",
        "pin_memory=True": "pin_memory=False",
        "torch.cuda.Event(enable_timing=True)": "CpuEvent()",
        "'batch_size': 1024": "'batch_size': 64", "batch_size = 2000": "batch_size = 64",
        "ceil(8 * len(": "ceil(1 * len(", "batch_size = 512": "batch_size = 64", "epochs = 24": "epochs = 6",
    }.items():  # fmt: skip
        source = source.replace(name, other)
    return re.sub(r"'train_epochs': [0-9.]+", "'train_epochs': 1", source)


class CpuEvent:
    """Replacement for a CUDA event on the CPU."""

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: CpuEvent) -> float:
        return 1e3 * (end.time - self.time)


WAITS = {"cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy"}
LAUNCHES = {"cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx"}
BATCHES = {"cifar10/airbench94": 1024, "cifar10/airbench94-muon": 2000, "cifar10/page-resnet9": 512}
"""Of the recipes; the rest, of ResNets on ImageNet, take 256 images."""


def steps(_folder: Path, _seeds: list[int]) -> list[dict[str, Any]]:
    """Return time, launches, waits and pageable copies of a training step, at the recipe's batch size, in fp16."""
    return [profile_steps(recipe, BATCHES.get(recipe, 256) if GPU else 4) for recipe in RECIPES]


def profile_steps(recipe: str, batch: int) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    precision = Precision.FP16 if GPU else Precision.BF16
    setup = first_phase(recipe, precision, torch.device("cuda", 0) if GPU else DEVICE, batch_size=batch)
    choose_algorithms(setup.distributed.device, deterministic=setup.settings.deterministic)
    trainer, schedule, sampler = Trainer(setup, frozenset(), lambda: False), setup.schedule, setup.build_sampler()

    def train(steps: range) -> float:
        start = synchronized_time()
        for step in steps:
            samples = sampler.batch(step * batch, batch)
            trainer.train_step(samples, batch, schedule.step_hyperparams(0))
        return (synchronized_time() - start) / len(steps)

    train(range(10 if GPU else 1))
    seconds = train(range(10, 10 + STEPS))
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]) as recorded:
        train(range(10, 10 + STEPS))
    counts = Counter(event.name for event in recorded.events())
    launches = sum(counts[name] for name in LAUNCHES) / STEPS
    return {
        "recipe": recipe, "batch": batch, "ms": 1e3 * seconds, "launches": launches,
        "waits": sum(counts[name] for name in WAITS) / STEPS,
        "pageable": sum(count for name, count in counts.items() if "Pageable -> Device" in name) / STEPS,
    }  # fmt: skip


def shards(jpegs: Path, _seeds: list[int]) -> list[dict[str, Any]]:
    """Return the results of whole runs from shards of `jpegs`, each of which is there often enough."""
    from shoestring_trainer.training.cli.prepare import index_source
    from shoestring_trainer.training.data.prepare_shards import prepare_shards
    from shoestring_trainer.training.data.shard_plan import PrepareOptions
    from shoestring_trainer.training.loop import train
    from shoestring_trainer.training.stop_listener import StopListener
    from shoestring_trainer.training.task import StepCounter, read_task

    folder, files, cores = Path(tempfile.mkdtemp()), jpeg_files(jpegs), len(os.sched_getaffinity(0))
    copies = max(1, SHARD_IMAGES // len(files))
    for label, copy in itertools.product((0, 1), range(copies)):
        place = folder / "images" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(files[label::2]):
            shutil.copy(file, place / f"{number}-{copy}.jpg")
    options = PrepareOptions(side=400, quality=90, images_per_shard=1000, skip_damaged=False)
    prepare_shards(index_source(folder / "images", skip=False), folder / "shards", options, cores, lambda _: None)
    figures = []
    for size, mode in itertools.product(SHARD_SIZES, ("none", "default") if GPU else ("none",)):
        run = folder / f"{size}-{mode}"
        run.mkdir()
        params = {
            "image_size": size, "batch_size": BATCH, "crop_scale": 0.08, "flip": True, "epochs": SHARD_EPOCHS,
            "eval_every_epochs": 10_000, "val_fraction": 0.02, "compile": mode, "deterministic": False,
        }  # fmt: skip
        task = {
            "format": 1, "job": "bench", "generation": 1, "recipe": "imagefolder/any", "params": params, "seed": 1,
            "precision": "fp16" if GPU else "auto", "data": {"train": str(folder / "shards"), "format": "imagefolder"},
        }  # fmt: skip
        (run / "task.json").write_text(json.dumps(task))
        with contextlib.redirect_stdout(io.StringIO()):
            train(read_task(run / "task.json"), StopListener(run / "order", lambda: os._exit(1)), StepCounter())
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        figures.append({"size": size, "compile": mode, "images": copies * len(files), **events[-1]["result"]})
    return figures


def resnet50(folder: Path, _: list[int]) -> list[dict[str, Any]]:
    """Return training images/s at each size and precision, from memory and from the JPEG files in `folder`."""
    from torchvision.models import resnet50 as network

    files = jpeg_files(folder)
    figures = []
    for size, precision in itertools.product(SIZES, Precision):
        model = network().to(DEVICE, memory_format=torch.channels_last)
        rates = {"memory": images_per_s(model, precision, from_memory(size))}
        if precision is not Precision.FP32:
            with from_files(files, size) as next_batch:
                rates["files"] = images_per_s(model, precision, next_batch)
            if GPU:
                model.compile(mode="max-autotune-no-cudagraphs")
                rates["compiled"] = images_per_s(model, precision, from_memory(size))
        flop = FORWARD_AND_BACKWARD * flop_per_image(network(), (3, size, size), torch.device("cpu"))
        peak = peak_flops(DEVICE, precision)
        share = {name: flop * rate / peak for name, rate in rates.items()} if peak else {}
        figures.append({"size": size, "precision": precision.value, "images_per_s": rates, "mfu": share})
    return figures


def images_per_s(model: nn.Module, precision: Precision, next_batch: NextBatch) -> float:
    """Return the median over blocks of steps, after a warm-up block."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=precision is Precision.FP16)
    rates = []
    for _ in range(1 + BLOCKS):
        start = synchronized_time()
        for _ in range(STEPS):
            images_NCHW, labels_N = next_batch()
            with precision.autocast(DEVICE):
                logits_NK = model(images_NCHW)
            scaler.scale(F.cross_entropy(logits_NK.float(), labels_N)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        rates.append(BATCH * STEPS / (synchronized_time() - start))
    return statistics.median(rates[1:])


def synchronized_time() -> float:
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


FLIP_AND_CROP = Settings(flip=True, crop_padding=4)
BLACK_C = torch.zeros(3, device=DEVICE)


def on_device(uint8_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    draws_NK = torch.rand(len(uint8_NCHW), 8, device=DEVICE)
    images_NCHW = augment(uint8_NCHW.to(DEVICE, non_blocking=True), draws_NK, FLIP_AND_CROP, BLACK_C, 255.0)
    return images_NCHW, torch.zeros(len(uint8_NCHW), dtype=torch.int64, device=DEVICE)


def from_memory(size: int) -> NextBatch:
    images_NCHW = torch.randint(0, 256, (2 * BATCH, 3, size, size), dtype=torch.uint8, device=DEVICE)
    return lambda: on_device(images_NCHW[torch.randperm(len(images_NCHW), device=DEVICE)[:BATCH]])


@contextlib.contextmanager
def from_files(files: list[Path], size: int) -> Iterator[NextBatch]:
    """Yield a function that returns batches, decoded on every core two batches ahead."""
    paths = itertools.cycle(files)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:

        def start_decoding() -> list[Future[tuple[Tensor, float]]]:
            return [pool.submit(decode_file, next(paths), ResizeSpec(size, size)) for _ in range(BATCH)]

        pending = [start_decoding(), start_decoding()]

        def next_batch() -> tuple[Tensor, Tensor]:
            pending.append(start_decoding())
            uint8_NCHW = torch.stack([image.result()[0] for image in pending.pop(0)])
            return on_device(uint8_NCHW.pin_memory() if GPU else uint8_NCHW)

        yield next_batch
        pool.shutdown(cancel_futures=True)


def jpeg_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})


def decoding(folder: Path, _: list[int]) -> list[dict[str, Any]]:
    """Return images/s that the trainer decodes before training, at each size, from the files in `folder`, repeated.

    Pillow uses as many threads as torch. If nvJPEG isn't available, `skipped` says why.
    """
    names = [
        str(path.relative_to(folder)) for path in itertools.islice(itertools.cycle(jpeg_files(folder)), DECODED_IMAGES)
    ]
    images = ImageIndex(
        folder, ["even", "odd"], names, [number % 2 for number in range(DECODED_IMAGES)],
        lambda number: open_image_file(folder / names[number]),
    )  # fmt: skip
    decoders: dict[str, JpegDecoder | None] = {f"Pillow in {torch.get_num_threads()} threads": None}
    skipped = ""
    try:
        decoders["nvJPEG"] = nvjpeg_decoder(DEVICE)
    except UserError as error:
        skipped = f"; nvJPEG skipped: {error}"
    figures = []
    for size in SIZES:
        rates = {name: decoded_images_per_s(images, size, decoder) for name, decoder in decoders.items()}
        figures.append({"size": size, "images_per_s": rates, "skipped": skipped})
    return figures


def decoded_images_per_s(images: ImageIndex, size: int, decoder: JpegDecoder | None) -> float:
    """Decode twice and return the second throughput, with files in the page cache and the GPU warmed up."""
    settings, few = Settings(image_size=size, decode_device="gpu" if decoder else "cpu"), images.subset([0, 1])
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        cache = DecodedCache(images, few, settings, {}, Path(scratch), False, True, find_place("cpu"), decoder)
        cache.load(size, False)
        start = time.perf_counter()
        cache.load(size, False)
        return (len(images) + len(few)) / (time.perf_counter() - start)


ROLES: dict[str, Callable[[Path, list[int]], Any]] = {
    "ours": ours, "airbench": airbench, "page": page, "steps": steps, "resnet50": resnet50, "shards": shards,
    "decoding": decoding,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]]))
