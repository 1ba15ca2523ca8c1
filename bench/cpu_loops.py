# SPDX-License-Identifier: Apache-2.0
"""The loops that bench/trainer_cpu compares ours with, one process each: `python -m bench.cpu_loops LOOP FOLDER`.

FOLDER holds a task.json as the trainer reads it. A loop trains the task's network on its images with its batch size,
optimizer, precision and augmentation, endlessly, and prints the time after each step. Crop and flip are the
augmentations that all of them have.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from shoestring_core import recipes
from shoestring_trainer.training import vision_compat  # noqa: F401 - makes torchvision importable
from shoestring_trainer.training.data.augment import augment
from shoestring_trainer.training.data.cifar10 import load_cifar10
from shoestring_trainer.training.data.dataset import ImageDataset
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.models.registry import build_model, init_from_data
from shoestring_trainer.training.optim.optimizers import build_optimizer, set_hyperparams
from shoestring_trainer.training.precision import choose_precision
from shoestring_trainer.training.randomness import DistributedSampler
from shoestring_trainer.training.settings import Settings
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

FASTAI = Path(__file__).parents[1] / ".peers" / "fastai"
WORKERS = 2
"""Of torchvision's and timm's loaders; without workers they were slower on 2 cores. fastai was faster without."""

Batch = tuple[Tensor, Tensor]


class Workload:
    """The task's dataset, network, optimizer and training step, which all loops share."""

    def __init__(self, folder: Path) -> None:
        task = json.loads((folder / "task.json").read_text())
        recipe = recipes.load(task["recipe"])
        self.settings = Settings.from_params(recipes.resolve(task["recipe"], task["params"]))
        self.data: ImageDataset = load_cifar10(Path(task["data"]["train"]), self.settings)
        self.schedule = HyperparamSchedule.from_settings(self.settings, len(self.data.train))
        self.precision = choose_precision(task["precision"], torch.device("cpu"))
        torch.manual_seed(1)
        self.model: nn.Module = build_model(
            **recipe.model, settings=self.settings, classes=10, mean=self.data.mean, std=self.data.std
        )
        init_from_data(self.model, self.data.train.images_NCHW, self.data.max_value)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.model, self.settings)

    def train_step(self, number: int, images_NCHW: Tensor, labels_N: Tensor) -> None:
        """Forward, backward, optimizer."""
        set_hyperparams(self.optimizer, self.schedule.step_hyperparams(number % self.schedule.total_steps))
        loss = self.loss(self.forward(images_NCHW), labels_N)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def forward(self, images_NCHW: Tensor) -> Tensor:
        with self.precision.autocast(torch.device("cpu")):
            logits_NK: Tensor = self.model(images_NCHW.contiguous(memory_format=torch.channels_last))
        return logits_NK.float()

    def loss(self, logits_NK: Tensor, labels_N: Tensor) -> Tensor:
        summed = F.cross_entropy(logits_NK, labels_N, label_smoothing=self.settings.label_smoothing, reduction="sum")
        return summed if self.settings.sum_loss else summed / len(labels_N)


def main(loop: str, folder: Path) -> None:
    workload = Workload(folder)
    if loop == "fastai":
        train_with_fastai(workload)
    else:
        for number, batch in enumerate(LOADERS[loop](workload)):
            workload.train_step(number, *batch)
            print_time()


def print_time() -> None:
    print(time.time(), flush=True)


def precomputed(workload: Workload) -> Iterator[Batch]:
    """Yield batches that were computed beforehand: what remains is the training step."""
    settings, data = workload.settings, workload.data
    sampler = DistributedSampler(1, len(data.train), 0, 1, alternating_flip=settings.alternating_flip)
    batches = []
    for number in range(4):
        indices = sampler.batch(number * settings.batch_size, settings.batch_size)
        images_NCHW = augment(
            data.train.images_NCHW[indices.ids_N], indices.draws_NK, settings, torch.tensor(data.mean), data.max_value
        )
        batches.append((images_NCHW, data.train.labels_N[indices.ids_N]))
    return itertools.cycle(batches)


class PilDataset(Dataset[tuple[Any, int]]):
    """Return samples as torchvision's CIFAR10 does: a transformed PIL image and its class."""

    def __init__(self, data: ImageDataset) -> None:
        self._pixels_NHWC = data.train.images_NCHW[:].permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = data.train.labels_N.tolist()
        self.transform: Callable[[Any], Any] = lambda image: image

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self._pixels_NHWC[index])), self._labels[index]


def crop_and_flip(settings: Settings) -> list[Callable[[Any], Any]]:
    from torchvision import transforms

    crop = transforms.RandomCrop(32, padding=settings.crop_padding, padding_mode="reflect")
    return [crop, transforms.RandomHorizontalFlip()]


def with_torchvision(workload: Workload) -> Iterator[Batch]:
    from torchvision import transforms

    dataset = PilDataset(workload.data)
    dataset.transform = transforms.Compose([*crop_and_flip(workload.settings), transforms.ToTensor()])
    loader: Iterable[Batch] = DataLoader(
        dataset, workload.settings.batch_size, shuffle=True, drop_last=True,
        num_workers=WORKERS, persistent_workers=WORKERS > 0,
    )  # fmt: skip
    return endless(loader)


def with_timm(workload: Workload) -> Iterator[Batch]:
    from timm.data.loader import create_loader
    from timm.data.transforms import ToNumpy
    from torchvision import transforms

    dataset = PilDataset(workload.data)
    loader: Iterable[Batch] = create_loader(
        cast("Any", dataset), (3, 32, 32), workload.settings.batch_size, is_training=True, no_aug=True,
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), num_workers=WORKERS, device=torch.device("cpu"),
    )  # fmt: skip
    dataset.transform = transforms.Compose([*crop_and_flip(workload.settings), ToNumpy()])
    return endless(loader)


def endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the loader's batches, epoch after epoch."""
    while True:
        yield from loader


def train_with_fastai(workload: Workload) -> None:
    """Train with fastai's Learner, loader and transforms, and our optimizer (in its wrapper) and autocast."""
    sys.path.append(str(FASTAI))
    from fastai.callback.core import Callback, CancelValidException
    from fastai.data.core import DataLoaders
    from fastai.data.transforms import IntToFloatTensor, ToTensor
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper
    from fastai.vision.core import PILImage
    from fastai.vision.data import TfmdDL

    dataset = PilDataset(workload.data)
    augmentations = crop_and_flip(workload.settings)

    def to_fastai(image: Any) -> Any:
        for transform in augmentations:
            image = transform(image)
        return PILImage(image)

    class PrintTimes(Callback):  # type: ignore[misc]
        def before_batch(self) -> None:
            set_hyperparams(workload.optimizer, workload.schedule.step_hyperparams(0))

        def after_batch(self) -> None:
            print_time()

        def before_validate(self) -> None:
            raise CancelValidException

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = workload.model

        def forward(self, images_NCHW: Tensor) -> Tensor:
            return workload.forward(images_NCHW.as_subclass(Tensor))

    dataset.transform = to_fastai
    loader = TfmdDL(
        dataset, bs=workload.settings.batch_size, shuffle=True, drop_last=True, num_workers=0,
        after_item=[ToTensor()], after_batch=[IntToFloatTensor()],
    )  # fmt: skip
    learner = Learner(
        DataLoaders(loader, loader), Net(),
        loss_func=lambda logits, labels: workload.loss(logits, labels.as_subclass(Tensor)),
        opt_func=lambda *_, **__: OptimWrapper(opt=workload.optimizer), cbs=[PrintTimes()],
    )  # fmt: skip
    with learner.no_logging():  # its epoch summaries would be mixed with the times
        learner.fit(10_000)


LOADERS: dict[str, Callable[[Workload], Iterator[Batch]]] = {
    "bare": precomputed,
    "torchvision": with_torchvision,
    "timm": with_timm,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
