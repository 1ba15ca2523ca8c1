# SPDX-License-Identifier: Apache-2.0
"""Read and decode images of shards in place, each by its row of the index."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from shoestring_trainer.data_sync.shard_requests import ShardRequests, ShardsUnavailable
from shoestring_trainer.training.data.confined_files import require_confined
from shoestring_trainer.training.data.decoding import ResizeSpec, decode_crop, decode_image
from shoestring_trainer.training.data.image_files import ignored_pillow_warnings, open_image_bytes
from shoestring_trainer.training.data.shard_index import map_samples, require_whole_shards, sample_key
from shoestring_trainer.training.data.shard_list import ShardIndex, Split
from shoestring_trainer.training.errors import DataError

_REMEDY = "its shard is damaged: copy it again, or prepare the shards again with the same command, which verifies them"


@dataclass(frozen=True)
class Chunk:
    """Images to decode together.

    rows_N     the numbers of their rows of the index
    samples_N  these rows: a process that decodes never reads the index, whose pages would count as its memory too
    spec       the size of all of them, and how they are center-cropped or stretched to it
    boxes_N4   left, top, width and height of a crop of each, as fractions of the image; None: as `spec` says
    flips_N    which of them are flipped; None: none
    """

    rows_N: npt.NDArray[np.int32]
    samples_N: npt.NDArray[Any]
    spec: ResizeSpec
    boxes_N4: npt.NDArray[np.float32] | None = None
    flips_N: npt.NDArray[np.bool_] | None = None


class ShardReader:
    """The images of a folder of shards. Forked processes share it: it keeps no file open.

    requests  asks for shards that aren't there yet; None: all must be there
    waited_s  seconds that this process has waited for shards

    Raises DataError, naming the file and the remedy, for a damaged index or a shard that is missing or truncated.
    """

    def __init__(self, folder: Path, index: ShardIndex, requests: ShardRequests | None = None) -> None:
        self.folder, self.index, self._requests = folder, index, requests
        self.waited_s = 0.0
        if requests is None:
            require_whole_shards(folder, index)
        self.samples = map_samples(folder, index)
        shards = index.shards
        for shard in shards:
            require_confined(folder / shard.name)
        self._first_rows = list(accumulate((shard.images for shard in shards), initial=0))

    def rows_of(self, split: Split) -> npt.NDArray[np.int32]:
        """Return the rows of a split."""
        in_split = np.array([shard.split == split for shard in self.index.shards])
        return np.flatnonzero(in_split[self.samples["shard"]]).astype(np.int32)

    def names(self, rows_N: npt.NDArray[np.int32]) -> list[str]:
        """Return the shard and the key of each sample."""
        shards_N = self.samples["shard"][rows_N]
        return [self._name(row, shard) for row, shard in zip(rows_N.tolist(), shards_N.tolist(), strict=True)]

    def chunk(self, rows_N: npt.NDArray[np.int32], spec: ResizeSpec, **changes: npt.NDArray[Any]) -> Chunk:
        """Return the images of these rows as a chunk, with `boxes_N4` and `flips_N`."""
        return Chunk(rows_N, self.samples[rows_N], spec, **changes)

    def decode(self, chunk: Chunk) -> Tensor:
        """Return the images, uint8 NHWC. Raises DataError that names the shard and the sample."""
        images_NHWC = torch.empty(len(chunk.rows_N), chunk.spec.height, chunk.spec.width, 3, dtype=torch.uint8)
        with ignored_pillow_warnings():
            for place, (row, sample) in enumerate(zip(chunk.rows_N.tolist(), chunk.samples_N, strict=True)):
                path = self.folder / self._name(row, int(sample["shard"]))
                opener = partial(self._open, sample, path)
                if chunk.boxes_N4 is None:
                    image_HWC = decode_image(opener, path, chunk.spec, _REMEDY)[0].permute(1, 2, 0)
                else:
                    box, size = chunk.boxes_N4[place].tolist(), chunk.spec.width
                    image_HWC = decode_crop(opener, path, box, size, _REMEDY)
                flipped = chunk.flips_N is not None and chunk.flips_N[place]
                images_NHWC[place] = image_HWC.flip(1) if flipped else image_HWC
        return images_NHWC

    def _name(self, row: int, number: int) -> str:
        shard = self.index.shards[number]
        return f"{shard.name}/{sample_key(shard.first + row - self._first_rows[number])}"

    def _open(self, sample: Any, path: Path) -> Image.Image:
        shard = self._open_shard(int(sample["shard"]))
        try:
            content = os.pread(shard, int(sample["bytes"]), int(sample["offset"]))
        finally:
            os.close(shard)
        if len(content) != sample["bytes"]:
            raise DataError(f"{path} lies beyond the end of its shard, which is truncated; copy it again")
        return open_image_bytes(content)

    def _open_shard(self, number: int) -> int:
        """Open a shard. Wait for it if it is streamed."""
        file = self.folder / self.index.shards[number].name
        awaited = False
        while True:
            try:
                opened = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if self._requests is None:
                    raise
            else:
                if self._requests and awaited:
                    self._requests.received(number)
                return opened
            try:
                self.waited_s += self._requests.wait_for([number])
                awaited = True
            except ShardsUnavailable as error:
                raise DataError(str(error)) from error
