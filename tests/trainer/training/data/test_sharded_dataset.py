# SPDX-License-Identifier: Apache-2.0
"""Training reads prepared shards: the images and the order of a decoded cache, in exact crops, from any step on."""

from __future__ import annotations

import gc
import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from shoestring_core.task import TaskData
from shoestring_trainer.training.cli.prepare import index_source
from shoestring_trainer.training.data.augment import augment, draws_used
from shoestring_trainer.training.data.batch_loader import BatchLoader
from shoestring_trainer.training.data.dataset import ImageDataset
from shoestring_trainer.training.data.decoding import decode_crop
from shoestring_trainer.training.data.image_files import open_image_file
from shoestring_trainer.training.data.prepare_shards import prepare_shards
from shoestring_trainer.training.data.shard_index import map_samples
from shoestring_trainer.training.data.shard_list import read_shard_index
from shoestring_trainer.training.data.shard_plan import PrepareOptions
from shoestring_trainer.training.data.sources import open_dataset, open_shards
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.randomness import DistributedSampler
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.task import LocalTask

from tests.trainer.training.data.sample_images import COLOURS, SINGLE_PROCESS, load
from tests.trainer.training.gangs import finished, gang

CROPS = Settings(image_size=16, batch_size=20, crop_scale=0.1, flip=True, epochs=2)
PLAIN = Settings(image_size=16, batch_size=20)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images to train on and 15 to validate on, of three classes and several shapes, 14 to a shard."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(75):
        noise = np.random.default_rng(number)
        width, height = (int(side) for side in noise.integers(20, 60, 2))
        name, colour = sorted(COLOURS.items())[number % 3]
        pixels = np.clip(np.array(colour) + noise.integers(-30, 30, (height, width, 3)), 0, 255).astype(np.uint8)
        path = folder / "source" / ("train" if number < 60 else "val") / name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=95)
    options = PrepareOptions(side=64, quality=90, images_per_shard=14, skip_damaged=False)
    prepare_shards(index_source(folder / "source", skip=False), folder / "prepared", options, 1, lambda _: None)
    return folder / "prepared"


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    (tmp_path / "copied").mkdir()
    for file in shards.iterdir():
        (tmp_path / "copied" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "copied"


def open_prepared(folder: Path, settings: Settings):
    task = LocalTask(
        format=1, folder=folder.parent, job="job", generation=1, recipe="imagefolder/any", seed=1,
        data=TaskData(train=str(folder), format="imagefolder"),
    )  # fmt: skip
    opened = open_shards("imagefolder", task, settings, SINGLE_PROCESS)
    return open_dataset("imagefolder", task, 1, settings, SINGLE_PROCESS, opened)


def batches(
    folder: Path, settings: Settings, first_step: int = 0, opened: Callable[[], None] = lambda: None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the batches of a run from a step on, as the loop loads them. `opened`: is called when the data are open."""
    loader = BatchLoader(open_prepared(folder, settings), settings, SINGLE_PROCESS.device)
    opened()
    schedule = HyperparamSchedule.from_settings(settings, len(loader.dataset.train))
    sampler = DistributedSampler(1, 60, 0, 1, draws=16, alternating_flip=settings.alternating_flip)
    (phase,) = schedule.phases
    ahead = (sampler.peek(step * phase.batch_size, phase.batch_size) for step in range(first_step, phase.end_step))
    loader.start_phase(phase, ahead)
    for step in range(first_step, phase.end_step):
        yield loader.load_batch(sampler.batch(step * phase.batch_size, phase.batch_size))


def pixels_and_labels(data: ImageDataset) -> list[object]:
    return [part for images in (data.train, data.val) for part in (images.images_NCHW[:], images.labels_N)]


def test_images_are_those_of_a_decoded_cache_of_the_same_shards(shards: Path, copied: Path):
    (copied / "shards.json").unlink()
    cached = load(copied, data_format="webdataset", rectangular=True)
    streamed = open_prepared(shards, PLAIN)(0, True)
    for ours, theirs in zip(pixels_and_labels(streamed), pixels_and_labels(cached), strict=True):
        assert torch.equal(ours, theirs)
    assert (streamed.mean, streamed.std, streamed.classes) == (cached.mean, cached.std, cached.classes)
    for (ours, our_images), (theirs, their_images) in zip(streamed.val_batches, cached.val_batches, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(our_images[:], their_images)
    assert streamed.val_names[0] == "val-000000.tar/00000000"


@pytest.mark.parametrize(
    "settings", [CROPS, replace(CROPS, crop_scale=0.0, flip=False, alternating_flip=True), replace(CROPS, cutout=4)]
)
def test_images_that_are_flipped_as_they_are_decoded_are_those_flipped_afterwards(shards: Path, settings: Settings):
    """In the second epoch an alternating flip is another one."""
    plain = replace(settings, flip=False, alternating_flip=False, cutout=0)
    sampler = DistributedSampler(1, 60, 0, 1, draws=16, alternating_flip=settings.alternating_flip)
    loaded = [[images_NCHW for images_NCHW, _ in batches(shards, each)] for each in (settings, plain)]
    for step, (ours_NCHW, plain_NCHW) in enumerate(zip(*loaded, strict=True)):
        expected_NCHW = augment(plain_NCHW, sampler.batch(20 * step, 20).draws_NK, settings, torch.zeros(3))
        where = expected_NCHW != 0  # but in what is cut out, which the loader fills with the data set's mean
        assert torch.equal(ours_NCHW[where], expected_NCHW[where])
    assert step == 5


def bytes_held(*roots: object) -> int:
    """Return the bytes of all that is held by these objects: what arrays and tensors are views of, once."""
    sizes: dict[int, int] = {}
    found, ahead = set(map(id, roots)), list(roots)
    while ahead:
        one = ahead.pop()
        if isinstance(one, torch.Tensor):
            sizes[one.data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, np.ndarray) and not isinstance(one.base, np.ndarray):
            sizes[one.ctypes.data] = one.nbytes
        elif not isinstance(one, np.ndarray):
            sizes[id(one)] = sys.getsizeof(one)
        referred = [*gc.get_referents(one), *([one.base] if isinstance(one, np.ndarray) else [])]
        for other in referred:
            if id(other) not in found and not isinstance(other, type | ModuleType | FunctionType):
                found.add(id(other))
                ahead.append(other)
    return sum(sizes.values())


def repeat_rows(folder: Path, times: int) -> None:
    """Let each training image of the shards be so many."""
    index = read_shard_index(folder)
    counts = [times if shard.split == "train" else 1 for shard in index.shards]
    shards = [replace(shard, images=count * shard.images) for shard, count in zip(index.shards, counts, strict=True)]
    rows = map_samples(folder, index)
    np.save(folder / "shards.npy", np.repeat(rows, np.array(counts)[rows["shard"]]))
    digest = hashlib.sha256((folder / "shards.npy").read_bytes()).hexdigest()
    changed = index.model_copy(update={"shards": shards, "samples_sha256": digest})
    (folder / "shards.json").write_text(changed.model_dump_json())


def test_a_rank_holds_sixty_bytes_for_each_image_of_the_data_set(copied: Path):
    """28 of them are the index, which is a map of the file."""
    held = []
    for images in (60, 60 * 500):
        repeat_rows(copied, images // 60)
        loader = BatchLoader(open_prepared(copied, CROPS), CROPS, SINGLE_PROCESS.device)
        sampler = DistributedSampler(1, images, 0, 1, draws=16, kept_draws=draws_used(CROPS))
        (phase,) = HyperparamSchedule.from_settings(CROPS, images).phases
        loader.start_phase(phase, iter(()))
        for start in (0, images - 10):  # the second batch ends in the next epoch
            sampler.batch(start, 20)
        held.append(bytes_held(loader, sampler))
    assert 55 < (held[1] - held[0]) / (60 * 499) < 60


def overwrite(folder: Path, images: Iterable[int]) -> None:
    """Put zeros in the place of images, given by their rows of the index."""
    index = read_shard_index(folder)
    for row in map_samples(folder, index)[list(images)]:
        with (folder / index.shards[row["shard"]].name).open("r+b") as file:
            file.seek(row["offset"])
            file.write(bytes(int(row["bytes"])))


def test_a_run_resumed_within_an_epoch_gets_the_same_batches_and_reads_nothing_of_what_went_before(
    shards: Path, copied: Path
):
    within_an_epoch = replace(CROPS, epochs=1)
    whole = list(batches(shards, within_an_epoch))
    before = DistributedSampler(1, 60, 0, 1, draws=16).batch(0, 40).ids_N.tolist()
    resumed = list(batches(copied, within_an_epoch, first_step=2, opened=lambda: overwrite(copied, before)))
    assert (len(whole), len(resumed)) == (3, 1)
    for ours, theirs in zip(resumed[0], whole[2], strict=True):
        assert torch.equal(ours, theirs)


def test_a_crop_is_the_one_of_its_draws_decoded_from_the_file(shards: Path):
    images_NCHW, labels_N = next(batches(shards, CROPS))
    plain_NCHW, _ = next(batches(shards, Settings(image_size=16, batch_size=20)))
    assert images_NCHW.shape == plain_NCHW.shape == (20, 3, 16, 16)
    colours = [torch.tensor(colour) / 255 for _, colour in sorted(COLOURS.items())]
    for image_CHW, label in zip(images_NCHW, labels_N.tolist(), strict=True):
        assert (image_CHW.mean((1, 2)) - colours[label]).abs().max() < 0.06
    assert not torch.equal(images_NCHW, plain_NCHW)


def test_a_crop_is_that_of_a_full_decode_whatever_the_orientation_of_the_file(tmp_path: Path):
    """256 pixels of the file become 32, so a JPEG is decoded at an eighth of its size."""
    rows, columns = np.mgrid[0:512, 0:640]
    shown = np.stack([128 + 100 * np.sin(columns / 40), 128 + 100 * np.cos(rows / 30), columns * 0.3 + 20], axis=2)
    upright, exif = Image.fromarray(shown.astype(np.uint8)), Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "1.jpg", quality=95)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "6.jpg", quality=95, exif=exif)
    whole = upright.resize((32, 32), Image.Resampling.BILINEAR, box=(160, 128, 416, 384))
    for name in ("1.jpg", "6.jpg"):
        box = 160 / 640, 128 / 512, 256 / 640, 256 / 512
        crop_HWC = decode_crop(partial(open_image_file, tmp_path / name), tmp_path / name, box, 32)
        error = ((crop_HWC.double() - torch.from_numpy(np.array(whole)).double()) ** 2).mean()
        assert 10 * math.log10(255**2 / error) > 30


def test_a_damaged_image_is_named_with_its_shard_by_its_decoder(copied: Path):
    message = r"train-000001\.tar/00000020 cannot be read as an image \(it holds zeros only.*\); its shard is damaged"
    with pytest.raises(DataError, match=message):
        list(batches(copied, CROPS, opened=lambda: overwrite(copied, [20])))
    with pytest.raises(DataError, match=message):
        open_prepared(copied, PLAIN)(0, False)


def test_a_truncated_or_missing_shard_is_named_before_training(copied: Path):
    file = copied / "train-000002.tar"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"the shard .*train-000002\.tar has 5,000 bytes instead of .*copy it again"):
        open_prepared(copied, PLAIN)
    file.unlink()
    with pytest.raises(DataError, match=r"the shard .*train-000002\.tar is missing"):
        open_prepared(copied, PLAIN)


def test_two_ranks_interrupted_on_shards_end_with_the_bits_of_a_run_on_a_decoded_cache(
    shards: Path, copied: Path, tmp_path: Path
):
    (copied / "shards.json").unlink()
    params = {"epochs": 4, "width": 4, "batch_size": 8, "image_size": 16, "crop_padding": 2, "cutout": 0}
    options = {"procs": 2, "recipe": "imagefolder/resnet9", "params": params}
    cached = finished(tmp_path / "cached", data={"train": str(copied), "format": "webdataset"}, bare=True, **options)
    with gang(tmp_path / "first", data={"train": str(shards)}, **options) as first:
        first.until_step(10)
        first.order_stop()
        assert first.wait() == [0, 0], first.logs()
    second = finished(tmp_path / "second", data={"train": str(shards)}, resume=first.checkpoint(), bare=True, **options)
    assert 10 <= second.events("started")[0]["step"] < 30
    assert second.state_hashes()["model.safetensors"] == cached.state_hashes()["model.safetensors"]
    losses = [line["v"]["train/loss"] for run in (first, second) for line in run.metrics()]
    assert losses == [line["v"]["train/loss"] for line in cached.metrics()]
