# SPDX-License-Identifier: Apache-2.0
"""The images of the phase at hand, where the steps pick them, and batches of them as the network sees them."""

from __future__ import annotations

from time import monotonic

import torch
from torch import Tensor

from shoestring_trainer.training.data.augment import RandomCrop, augment
from shoestring_trainer.training.data.sources import Source
from shoestring_trainer.training.optim.schedules import Phase, first_view
from shoestring_trainer.training.settings import Settings


class Feed:
    """Gives batches on the device.

    phase     the one that was entered; None: none yet
    data      the whole data set, in the view of the phase
    waited_s  seconds that training has waited here: for decoding between phases, copying, augmentation. On a GPU,
              those in which the host was held up; what it leaves to the device to do in turn doesn't count
    """

    def __init__(self, source: Source, settings: Settings, device: torch.device) -> None:
        self._source, self._settings, self._device = source, settings, device
        self._view = first_view(settings)
        self.phase: Phase | None = None
        self.data = source(*self._view)
        self.waited_s = 0.0
        self._images_NCHW, self._labels_N = self.data.train.images_NCHW, self.data.train.labels_N

    def turn_to(self, view: tuple[int, bool]) -> None:
        """Have the data in `view`: pixels a side, and whether held-out images keep their shapes."""
        if view == self._view:
            return
        self._view = view
        del self.data, self._images_NCHW  # copies leave the disk and the device before the next take their place
        self.data = self._source(*view)
        self._images_NCHW = self.data.train.images_NCHW

    def enter(self, phase: Phase) -> None:
        """Have the images of `phase`."""
        began = monotonic()
        self.turn_to(phase.view)
        self.phase = phase
        self._images_NCHW = place(self.data.train.images_NCHW, self._device)
        self._labels_N = self.data.train.labels_N.to(self._device)
        self.waited_s += monotonic() - began

    def batch(self, samples_N: Tensor, draws_NK: Tensor) -> tuple[Tensor, Tensor]:
        """These samples' images, augmented by their draws and as floats, and their labels."""
        began = monotonic()
        samples_N, draws_NK = samples_N.to(self._device), draws_NK.to(self._device)
        picked_NCHW = self._images_NCHW[samples_N.to(self._images_NCHW.device)].to(self._device)
        images_NCHW = augment(
            picked_NCHW, draws_NK, self._settings, self.data.mean, self.data.white, self._random_crop(samples_N)
        )
        labels_N = self._labels_N[samples_N]
        self.waited_s += monotonic() - began
        return images_NCHW, labels_N

    def _random_crop(self, samples_N: Tensor) -> RandomCrop | None:
        if self.phase is None or not self.phase.crop_scale:
            return None
        aspects_N = self.data.train.aspects_N
        own_N = None if aspects_N is None else aspects_N[samples_N.cpu()].to(self._device)
        return RandomCrop(self.phase.size or self._settings.image_size, self.phase.crop_scale, own_N)


def place(uint8_NCHW: Tensor, device: torch.device) -> Tensor:
    """The images on the device, if they leave it half of its free memory; else where they are."""
    if device.type == "cuda" and 2 * uint8_NCHW.nbytes > torch.cuda.mem_get_info(device)[0]:
        return uint8_NCHW
    return uint8_NCHW.to(device)
