# SPDX-License-Identifier: Apache-2.0
"""Batches of augmented images on the device, from a dataset decoded at the size of the current phase."""

from __future__ import annotations

from time import monotonic

import torch
from torch import Tensor

from shoestring_trainer.training.data.augment import RandomResizedCrop, augment
from shoestring_trainer.training.data.sources import DatasetSource
from shoestring_trainer.training.hyperparam_schedule import ImageFormat, Phase, initial_image_format
from shoestring_trainer.training.settings import Settings


class BatchLoader:
    """Load batches onto the device.

    phase    the current phase of the schedule; None before the first
    dataset  the whole dataset, in the image format of the phase
    wait_s   seconds that training has waited for data: decoding between phases, copying, augmentation. On a GPU, only
             the time in which the host was blocked; kernels queued on the device don't count
    """

    def __init__(self, source: DatasetSource, settings: Settings, device: torch.device) -> None:
        self._source, self._settings, self._device = source, settings, device
        self._image_format = initial_image_format(settings)
        self.phase: Phase | None = None
        self.dataset = source(*self._image_format)
        self.wait_s = 0.0
        self._images_NCHW, self._labels_N = self.dataset.train.images_NCHW, self.dataset.train.labels_N

    def set_image_format(self, image_format: ImageFormat) -> None:
        """Decode the dataset in `image_format`, unless it is the current one."""
        if image_format == self._image_format:
            return
        self._image_format = image_format
        del self.dataset, self._images_NCHW  # free disk and device memory before the next images take their place
        self.dataset = self._source(*image_format)
        self._images_NCHW = self.dataset.train.images_NCHW

    def start_phase(self, phase: Phase) -> None:
        """Prepare the images of `phase`."""
        start = monotonic()
        self.set_image_format(phase.image_format)
        self.phase = phase
        self._images_NCHW = to_device_if_it_fits(self.dataset.train.images_NCHW, self._device)
        self._labels_N = self.dataset.train.labels_N.to(self._device)
        self.wait_s += monotonic() - start

    def load_batch(self, samples_N: Tensor, draws_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples' images, augmented by their random draws, as float32; and their labels."""
        start = monotonic()
        samples_N, draws_NK = samples_N.to(self._device), draws_NK.to(self._device)
        raw_NCHW = self._images_NCHW[samples_N.to(self._images_NCHW.device)].to(self._device)
        dataset = self.dataset
        images_NCHW = augment(
            raw_NCHW, draws_NK, self._settings, dataset.mean, dataset.max_value, self._resized_crop(samples_N)
        )
        labels_N = self._labels_N[samples_N]
        self.wait_s += monotonic() - start
        return images_NCHW, labels_N

    def _resized_crop(self, samples_N: Tensor) -> RandomResizedCrop | None:
        if self.phase is None or not self.phase.crop_scale:
            return None
        all_ratios = self.dataset.train.aspect_ratios_N
        aspect_ratios_N = None if all_ratios is None else all_ratios[samples_N.cpu()].to(self._device)
        return RandomResizedCrop(
            self.phase.image_size or self._settings.image_size, self.phase.crop_scale, aspect_ratios_N
        )


def to_device_if_it_fits(images_NCHW: Tensor, device: torch.device) -> Tensor:
    """Move the images to the device if that leaves half of its free memory; else return them where they are."""
    if device.type == "cuda" and 2 * images_NCHW.nbytes > torch.cuda.mem_get_info(device)[0]:
        return images_NCHW
    return images_NCHW.to(device)
