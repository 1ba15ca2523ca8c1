# SPDX-License-Identifier: Apache-2.0
"""Batches of augmented images on the device, from a dataset decoded at the size of the current phase."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from time import monotonic

import torch
from torch import Tensor

from shoestring_trainer.training.data.augment import RandomResizedCrop, augment, flips_come_first
from shoestring_trainer.training.data.dataset import ImageStream
from shoestring_trainer.training.data.sources import DatasetSource
from shoestring_trainer.training.data.stalls import InputStalls
from shoestring_trainer.training.hyperparam_schedule import ImageFormat, Phase, initial_image_format
from shoestring_trainer.training.randomness import Samples
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.upload import upload, upload_rows


class BatchLoader:
    """Load batches onto the device.

    phase    the current phase of the schedule; None before the first
    dataset  the whole dataset, in the image format of the phase
    wait_s   seconds that training has waited for data: decoding between phases, copying, augmentation. On a GPU, only
             the time in which the host was blocked; kernels queued on the device don't count
    stalls   the same by cause, without augmentation and without what happens between phases
    """

    def __init__(self, source: DatasetSource, settings: Settings, device: torch.device) -> None:
        self._source, self._settings, self._device = source, settings, device
        self._image_format = initial_image_format(settings)
        self.phase: Phase | None = None
        self.dataset = source(*self._image_format)
        self.wait_s = 0.0
        self.stalls = InputStalls()
        self._images_NCHW = self.dataset.train.images_NCHW

    def set_image_format(self, image_format: ImageFormat) -> None:
        """Decode the dataset in `image_format`, unless it is the current one."""
        if image_format == self._image_format:
            return
        self._image_format = image_format
        del self.dataset, self._images_NCHW  # free disk and device memory before the next images take their place
        self.dataset = self._source(*image_format)
        self._images_NCHW = self.dataset.train.images_NCHW

    def start_phase(self, phase: Phase, upcoming: Iterable[Samples]) -> None:
        """Prepare the images of `phase`.

        upcoming  the samples of its steps, which are read ahead if images are decoded as they are needed
        """
        start = monotonic()
        self.set_image_format(phase.image_format)
        self.phase = phase
        train = self.dataset.train
        self._stream: ImageStream | None = None
        self._augmentation = self._settings
        if isinstance(train.images_NCHW, Tensor):
            self._images_NCHW = to_device_if_it_fits(train.images_NCHW, self._device)
        else:
            self._stream = train.images_NCHW.stream_samples(upcoming, phase)
            if flips_come_first(self._settings):  # then they come flipped
                self._augmentation = replace(self._settings, flip=False, alternating_flip=False)
        self._labels_N = upload(train.labels_N, self._device)
        self._mean_C = upload(torch.tensor(self.dataset.mean), self._device)
        ratios_N = train.aspect_ratios_N if phase.crop_scale else None
        self._aspect_ratios_N = None if ratios_N is None else upload(ratios_N, self._device)
        self.wait_s += monotonic() - start

    def await_input(self, start: int, size: int) -> None:
        """Return when all ranks have the shards of a global batch: samples `start` to `start + size` of the stream."""
        if feed := self.dataset.feed:
            waited_s = feed.before_batch(start, size)
            self.wait_s += waited_s
            self.stalls.download_s += waited_s

    def load_batch(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Return the samples' images, augmented by their random draws, as float32; and their labels."""
        start = monotonic()
        raw_NCHW = self._load_raw(samples)
        images_NCHW = augment(
            raw_NCHW, samples.draws_NK, self._augmentation, self._mean_C, self.dataset.max_value,
            self._resized_crop(samples.device_ids_N),
        )  # fmt: skip
        labels_N = self._labels_N[samples.device_ids_N].long()
        self.wait_s += monotonic() - start
        return images_NCHW, labels_N

    def _load_raw(self, samples: Samples) -> Tensor:
        if self._stream:
            return self._stream.take(len(samples.ids_N), self._device, self.stalls)
        assert isinstance(self._images_NCHW, Tensor)  # others are streamed
        if self._images_NCHW.device == self._device:
            return self._images_NCHW.index_select(0, samples.device_ids_N)
        began = monotonic()
        uploaded_NCHW = upload_rows(self._images_NCHW, samples.ids_N, self._device)
        self.stalls.upload_s += monotonic() - began
        return uploaded_NCHW

    def _resized_crop(self, device_ids_N: Tensor) -> RandomResizedCrop | None:
        if self._stream or self.phase is None or not self.phase.crop_scale:
            return None  # images of a stream are decoded in their crops
        aspect_ratios_N = None if self._aspect_ratios_N is None else self._aspect_ratios_N[device_ids_N]
        return RandomResizedCrop(
            self.phase.image_size or self._settings.image_size, self.phase.crop_scale, aspect_ratios_N
        )


def to_device_if_it_fits(images_NCHW: Tensor, device: torch.device) -> Tensor:
    """Move the images to the device if that leaves half of its free memory; else return them where they are."""
    if device.type == "cuda" and 2 * images_NCHW.nbytes > torch.cuda.mem_get_info(device)[0]:
        return images_NCHW
    return images_NCHW.to(device)
