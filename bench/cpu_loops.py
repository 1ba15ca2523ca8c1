# SPDX-License-Identifier: Apache-2.0
"""The loops that bench/trainer_cpu compares, each in a process of its own: `python -m bench.cpu_loops LOOP FOLDER`.

FOLDER holds a task.json as the trainer reads it. A loop trains that task's network on that task's pictures with its
batch, optimizer, precision and augmentation, and prints the time at the end of each step, and the CPU time so far of
its process and its loader's. Crop and flip are all the augmentation that all four know.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from PIL import Image
from shoestring_core import recipes
from shoestring_trainer.training import vision_compat  # noqa: F401 - lets torchvision in
from shoestring_trainer.training.augment import augment
from shoestring_trainer.training.cifar10 import load_cifar10
from shoestring_trainer.training.models import build_model, learn_from_pictures
from shoestring_trainer.training.optimizers import build_optimizer, set_pace
from shoestring_trainer.training.pictures import DataSet
from shoestring_trainer.training.precision import choose_precision
from shoestring_trainer.training.randomness import SampleOrder
from shoestring_trainer.training.schedules import Plan
from shoestring_trainer.training.settings import Settings
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

FASTAI = Path(__file__).parents[1] / ".peers" / "fastai"
WORKERS = 2
"""Of the loaders of torchvision and timm; with none they were slower on 2 cores. fastai was faster with none."""

Batch = tuple[Tensor, Tensor]


class Course:
    """What all loops share: the task's data, network, optimizer and step."""

    def __init__(self, folder: Path) -> None:
        task = json.loads((folder / "task.json").read_text())
        recipe = recipes.load(task["recipe"])
        self.settings = Settings.of(recipes.resolve(task["recipe"], task["params"]))
        self.data: DataSet = load_cifar10(Path(task["data"]["train"]), self.settings)
        self.plan = Plan.of(self.settings, len(self.data.train))
        self.precision = choose_precision(task["precision"], torch.device("cpu"))
        torch.manual_seed(1)
        self.model: nn.Module = build_model(
            **recipe.model, settings=self.settings, classes=10, mean=self.data.mean, std=self.data.std
        )
        learn_from_pictures(self.model, self.data.train.bytes_NCHW, self.data.white)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.model, self.settings, scaled=False)
        self.steps = self.plan.steps

    def step(self, number: int, pictures_NCHW: Tensor, labels_N: Tensor) -> None:
        """Forward, backward, optimizer."""
        set_pace(self.optimizer, self.plan.pace(number))
        loss = self.loss(self.forward(pictures_NCHW), labels_N)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def forward(self, pictures_NCHW: Tensor) -> Tensor:
        with self.precision.autocast(torch.device("cpu")):
            logits_NK: Tensor = self.model(pictures_NCHW.contiguous(memory_format=torch.channels_last))
        return logits_NK.float()

    def loss(self, logits_NK: Tensor, labels_N: Tensor) -> Tensor:
        summed = F.cross_entropy(logits_NK, labels_N, label_smoothing=self.settings.label_smoothing, reduction="sum")
        return summed if self.settings.sum_loss else summed / len(labels_N)


def main(loop: str, folder: Path) -> int:
    if loop == "ours":
        return ours(folder)
    course, clock = Course(folder), Clock()
    if loop == "fastai":
        train_with_fastai(course, clock)
    else:
        for number, batch in enumerate(itertools.islice(LOADERS[loop](course), course.steps)):
            course.step(number, *batch)
            clock.tick()
    print(json.dumps(clock.ticks), flush=True)
    os._exit(0)  # the loaders' processes need no farewell


class Clock:
    """ticks: after each step the time and the CPU seconds spent so far, by this process and those it started."""

    def __init__(self) -> None:
        self.ticks: list[tuple[float, float]] = []
        self._process = psutil.Process()

    def tick(self) -> None:
        family = [self._process, *self._process.children(recursive=True)]
        self.ticks.append((time.time(), sum(sum(one.cpu_times()[:2]) for one in family)))


def ours(folder: Path) -> int:
    """The trainer itself, as a rented machine starts it, with a watch on its CPU time; its own lines tell the time."""
    command = [sys.executable, "-m", "shoestring_trainer", "train", str(folder / "task.json")]
    trainer = subprocess.Popen(command)
    process, metrics, ticks, seen = psutil.Process(trainer.pid), folder / "metrics.jsonl", [], 0
    while trainer.poll() is None:
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        try:
            used_s = sum(process.cpu_times()[:2])
        except psutil.Error:
            break
        for line in lines[seen:]:
            ticks.append((json.loads(line)["t"], used_s))
        seen = len(lines)
        time.sleep(0.02)
    if code := trainer.wait():
        print((folder / "log-rank0.txt").read_text(), file=sys.stderr)
        return code
    print(json.dumps(ticks))
    return 0


def bare(course: Course) -> Iterator[Batch]:
    """Batches that were made before the clock started: what is left is the step alone."""
    settings, data = course.settings, course.data
    order = SampleOrder(1, len(data.train), 0, 1, alternating_flip=settings.alternating_flip)
    ready = []
    for number in range(4):
        picked = order.pick(number * settings.batch_size, settings.batch_size)
        pictures_NCHW = augment(
            data.train.bytes_NCHW[picked.samples_N], picked.draws_NK, settings, data.mean, data.white
        )
        ready.append((pictures_NCHW, data.train.labels_N[picked.samples_N]))
    return itertools.cycle(ready)


class PilPictures(Dataset[tuple[Any, int]]):
    """As torchvision's CIFAR10 gives them: a PIL picture through a transform, and its class."""

    def __init__(self, data: DataSet) -> None:
        self._pixels_NHWC = data.train.bytes_NCHW.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = data.train.labels_N.tolist()
        self.transform: Callable[[Any], Any] = lambda picture: picture

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self._pixels_NHWC[index])), self._labels[index]


def crop_and_flip(settings: Settings) -> list[Callable[[Any], Any]]:
    from torchvision import transforms

    crop = transforms.RandomCrop(32, padding=settings.crop, padding_mode="reflect")
    return [crop, transforms.RandomHorizontalFlip()]


def with_torchvision(course: Course) -> Iterator[Batch]:
    from torchvision import transforms

    pictures = PilPictures(course.data)
    pictures.transform = transforms.Compose([*crop_and_flip(course.settings), transforms.ToTensor()])
    loader: Iterable[Batch] = DataLoader(
        pictures, course.settings.batch_size, shuffle=True, drop_last=True,
        num_workers=WORKERS, persistent_workers=True,
    )  # fmt: skip
    return endless(loader)


def with_timm(course: Course) -> Iterator[Batch]:
    from timm.data import create_loader
    from timm.data.transforms import ToNumpy
    from torchvision import transforms

    pictures = PilPictures(course.data)
    loader: Iterable[Batch] = create_loader(
        pictures, (3, 32, 32), course.settings.batch_size, is_training=True, no_aug=True,
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), num_workers=WORKERS, device=torch.device("cpu"),
    )  # fmt: skip
    pictures.transform = transforms.Compose([*crop_and_flip(course.settings), ToNumpy()])
    return endless(loader)


def endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Epoch after epoch."""
    while True:
        yield from loader


def train_with_fastai(course: Course, clock: Clock) -> None:
    """fastai's Learner over its own loader and transforms, with our optimizer in its wrapper and our autocast."""
    sys.path.append(str(FASTAI))
    from fastai.callback.core import Callback, CancelFitException
    from fastai.data.core import DataLoaders
    from fastai.data.transforms import IntToFloatTensor, ToTensor
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper
    from fastai.vision.core import PILImage
    from fastai.vision.data import TfmdDL

    pictures = PilPictures(course.data)
    before = crop_and_flip(course.settings)

    def as_fastai(picture: Any) -> Any:
        for transform in before:
            picture = transform(picture)
        return PILImage(picture)

    class Stop(Callback):  # type: ignore[misc]
        def after_batch(self) -> None:
            clock.tick()
            if len(clock.ticks) >= course.steps:
                raise CancelFitException
            set_pace(course.optimizer, course.plan.pace(len(clock.ticks)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = course.model

        def forward(self, pictures_NCHW: Tensor) -> Tensor:
            return course.forward(pictures_NCHW.as_subclass(Tensor))

    pictures.transform = as_fastai
    loader = TfmdDL(
        pictures, bs=course.settings.batch_size, shuffle=True, drop_last=True, num_workers=0,
        after_item=[ToTensor()], after_batch=[IntToFloatTensor()],
    )  # fmt: skip
    learner = Learner(
        DataLoaders(loader, loader), Net(),
        loss_func=lambda logits, labels: course.loss(logits, labels.as_subclass(Tensor)),
        opt_func=lambda *_, **__: OptimWrapper(opt=course.optimizer), cbs=[Stop()],
    )  # fmt: skip
    learner.fit(1000)


LOADERS: dict[str, Callable[[Course], Iterator[Batch]]] = {
    "bare": bare,
    "torchvision": with_torchvision,
    "timm": with_timm,
}
LOOPS = ["ours", *LOADERS, "fastai"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
