# SPDX-License-Identifier: Apache-2.0
"""Image folders: read correctly, rejected with the file's name, or skipped and counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shoestring_trainer.training.data import decoded_cache, mapped_images
from shoestring_trainer.training.data.decoding import ResizeSpec, decode_file
from shoestring_trainer.training.data.image_folder import index_folders, index_image_folder
from shoestring_trainer.training.data.mapped_images import decode_to_file, metadata_path
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.errors import DataError

from tests.trainer.training.data.sample_images import COLOURS, load, open_source, save_image
from tests.trainer.training.gangs import finished, gang


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name, colour in COLOURS.items():
        for number in range(20):
            save_image(folder / name / f"{number:02d}.jpg", colour, number)
    return folder


def decode(path: Path, size: int) -> torch.Tensor:
    return decode_file(path, ResizeSpec(size, size))[0]


def test_a_folder_without_splits_is_split_by_class_and_seed(flat: Path):
    first, again, other = load(flat), load(flat), load(flat, seed=2)
    assert first.classes == ["blue", "red", "yellow"]
    assert (len(first.train), len(first.val)) == (48, 12)
    assert torch.equal(first.train.images_NCHW, again.train.images_NCHW)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert len(first.split["val"]) == 12
    assert not list(flat.parent.glob("images-*"))


@pytest.mark.parametrize("name", ["val", "test"])
@pytest.mark.parametrize("given", [".", "train"])
def test_separate_train_and_val_folders_are_used_as_they_are(flat: Path, name: str, given: str):
    root = flat.parent / "root"
    shutil.copytree(flat, root / "train")
    shutil.copytree(flat, root / name)
    data = load(root / given)
    assert (len(data.train), len(data.val)) == (60, 60)


def test_grayscale_and_cmyk_images_are_converted_to_rgb(tmp_path: Path):
    save_image(tmp_path / "grey.jpg", COLOURS["blue"], 1, "L")
    save_image(tmp_path / "cmyk.jpg", COLOURS["red"], 1, "CMYK")
    grey, cmyk = decode(tmp_path / "grey.jpg", 16), decode(tmp_path / "cmyk.jpg", 16)
    assert grey.shape == cmyk.shape == (3, 16, 16)
    assert torch.equal(grey[0], grey[2])
    assert (cmyk.float().mean((1, 2)) - torch.tensor(COLOURS["red"])).abs().max() < 12


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff\xe0 cut"], ids=["empty", "text", "cut"])
def test_a_corrupt_image_is_named_with_the_remedy(flat: Path, content: bytes):
    broken = flat / "red" / "05.jpg"
    broken.write_bytes(content)
    with pytest.raises(DataError, match=rf"{broken} cannot be read.*on_corrupt=skip"):
        load(flat)


def test_a_truncated_image_is_corrupt(flat: Path):
    broken = flat / "red" / "05.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(DataError, match=str(broken)):
        load(flat)


def test_corrupt_images_are_skipped_and_counted_if_configured(flat: Path):
    for number in range(3):
        (flat / "red" / f"{number:02d}.jpg").write_bytes(b"broken")
    data = load(flat, on_corrupt="skip")
    assert data.skipped == 3
    assert len(data.train) + len(data.val) == 57


def test_skipped_and_ignored_files_are_logged(flat: Path, capsys):
    (flat / "red" / "02.jpg").write_bytes(b"broken")
    (flat / "red" / "notes.txt").write_text("no image")
    (flat / "red" / ".DS_Store").write_text("of no interest to anybody")
    data = load(flat, on_corrupt="skip")
    log = capsys.readouterr().out
    assert str(flat / "red" / "02.jpg") in log
    assert "skipped 1 invalid sample" in log
    assert (
        "ignored 1 file (not images by their extension, or outside the class folders); the first is "
        f"{flat / 'red' / 'notes.txt'}" in log
    )
    assert len(data.train) + len(data.val) == 59


def test_images_of_any_size_are_resized_to_one_size(flat: Path):
    for number, size in enumerate([(1, 1), (3, 500), (640, 2)]):
        Image.new("RGB", size, COLOURS["red"]).save(flat / "red" / f"odd-{number}.png")
    data = load(flat)
    assert len(data.train) + len(data.val) == 63
    assert data.train.images_NCHW.shape[1:] == data.val.images_NCHW.shape[1:] == (3, 16, 16)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it found
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tif", "webp", "ppm"])
def test_damage_anywhere_in_a_file_raises_a_data_error_or_still_decodes(tmp_path: Path, suffix: str):
    draw = np.random.default_rng(1)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(draw.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole[: draw.integers(1, len(whole) + 1)])
        for place in draw.integers(0, len(damaged), 3):
            damaged[place] = draw.integers(0, 256)
        path.write_bytes(damaged)
        try:
            image = decode(path, 16)
        except DataError:
            refused += 1
        else:
            assert image.shape == (3, 16, 16)
    assert refused > 100


def test_a_class_without_readable_images_is_rejected_even_when_skipping(flat: Path):
    for path in (flat / "red").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="red"):
        load(flat, on_corrupt="skip")


def test_more_than_eight_bits_are_rejected_and_not_clipped(flat: Path):
    deep = flat / "red" / "deep.png"
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(deep)
    with pytest.raises(DataError, match=rf"{deep} has more than 8 bits"):
        load(flat)


def test_rectangular_batches_keep_the_aspect_ratio_and_hold_each_image_once(flat: Path):
    for number in range(6):
        Image.new("RGB", (60, 20), COLOURS["red"]).save(flat / "red" / f"wide-{number}.png")
    data = load(flat, eval_resize_factor=1.14, rectangular=True)
    found = torch.cat([indices for indices, _ in data.val_batches])
    assert sorted(found.tolist()) == list(range(len(data.val)))
    assert all(len(indices) == len(images) for indices, images in data.val_batches)
    assert all(images.shape[1:] == (3, 16, 16) or 16 in images.shape[2:] for _, images in data.val_batches)


def test_batches_group_similar_aspect_ratios_with_sides_in_multiples_of_eight(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoded_cache, "RECTANGULAR_BATCH_SIZE", 2)
    groups = decoded_cache.group_by_aspect_ratio([2.0, 0.5, 1.0, 2.1, 0.5, 1.02], 64, 1.14)
    assert [group for group, _ in groups] == [[1, 4], [2, 5], [0, 3]]
    assert [(spec.height, spec.width) for _, spec in groups] == [(128, 64), (64, 64), (64, 128)]


def test_images_for_random_resized_crops_are_stretched_not_cropped(flat: Path):
    half = np.zeros((20, 60, 3), np.uint8)
    half[:, 30:] = 255
    Image.fromarray(half).save(flat / "red" / "half.png")
    image, aspect = decode_file(flat / "red" / "half.png", ResizeSpec(20, 20, stretch=True))
    assert aspect == 3
    assert image[:, :, :8].max() < 10 < 245 < image[:, :, 12:].min()
    data = load(flat, crop_scale=0.35)
    assert data.train.images_NCHW.shape[2:] == (20, 20)
    assert data.train.aspect_ratios_N is not None
    assert data.val.images_NCHW.shape[2:] == (16, 16)


def test_an_empty_class_is_named(flat: Path):
    (flat / "green").mkdir()
    with pytest.raises(DataError, match=str(flat / "green")):
        index_image_folder(flat, 1, 0.2)


def test_one_class_is_not_enough(flat: Path):
    shutil.rmtree(flat / "blue")
    shutil.rmtree(flat / "yellow")
    with pytest.raises(DataError, match="needs two"):
        index_image_folder(flat, 1, 0.2)


def test_classes_that_differ_are_named(flat: Path):
    root = flat.parent / "root"
    shutil.copytree(flat, root / "train")
    shutil.copytree(flat, root / "val")
    shutil.rmtree(root / "val" / "red")
    with pytest.raises(DataError, match="red is in one only"):
        load(root)


def pictures(root: Path, *folders: str) -> Path:
    """Return the folder with two pictures in each of these sub-folders."""
    for folder in folders:
        for number in range(2):
            save_image(root / folder / f"{number}.jpg", COLOURS["red"], number)
    return root


def split_by_name(root: Path) -> tuple[Path, Path, list[str]]:
    train, val = index_image_folder(root, 1, 0.5)
    return train.root, val.root, train.classes


@pytest.mark.parametrize(("train", "val"), [("training", "validation"), ("Train", "eval"), ("train_set", "test_set")])
def test_folders_are_held_out_by_every_word_for_it(tmp_path: Path, train: str, val: str):
    pictures(tmp_path, f"{train}/a", f"{train}/b", f"{val}/a", f"{val}/b")
    assert split_by_name(tmp_path) == (tmp_path / train, tmp_path / val, ["a", "b"])


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ["bus", "car", "train/ice", "train/tgv"],
            "train in .* can be parts of a data set, of which bus, car would be",
        ),
        (["train/a", "train/b", "val/a", "val/b", "extra/a"], "train, val in .* of which extra would be none"),
        (["cat", "dog", "test"], "test in .* can be parts of a data set, of which cat, dog would be none, or classes"),
        (["valid", "invalid"], "of which invalid would be none, or classes like the others.*/train and give that"),
        (["val", "test"], "look like dataset splits, not classes"),
        (["train/a", "train/b", "val"], "val holds 0 class folders"),
    ],
)
def test_folders_of_which_it_cannot_be_known_are_refused_with_both_readings(
    tmp_path: Path, folders: list[str], message: str
):
    with pytest.raises(DataError, match=message):
        index_image_folder(pictures(tmp_path, *folders), 1, 0.5)


def test_the_path_of_the_training_folder_tells_that_its_folders_are_classes(tmp_path: Path):
    pictures(tmp_path, "train/valid", "train/invalid")
    assert split_by_name(tmp_path / "train")[2] == ["invalid", "valid"]
    assert split_by_name(tmp_path)[2] == ["invalid", "valid"]


def test_a_class_called_train_is_a_class(tmp_path: Path):
    pictures(tmp_path, "bus", "car", "train")
    assert split_by_name(tmp_path) == (tmp_path, tmp_path, ["bus", "car", "train"])


def test_folders_without_images_beside_the_splits_are_of_no_matter(tmp_path: Path):
    pictures(tmp_path, "train/a", "train/b", "val/a", "val/b")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.xml").write_text("<a/>")
    assert split_by_name(tmp_path)[1] == tmp_path / "val"


@pytest.mark.parametrize("test", ["test", "test/images"])
def test_a_test_folder_without_classes_is_not_held_out(tmp_path: Path, test: str, capsys: pytest.CaptureFixture[str]):
    load(pictures(tmp_path, "train/a", "train/b", test), val_fraction=0.5)
    said = (
        f"training on 2 images of 2 classes in {tmp_path}/train, validating on 2 held out of the same; not used: "
        f"{tmp_path}/test\n"
    )
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\nb", "a\u202eb", " ", "a\x85b"])
def test_a_folder_whose_name_no_line_can_show_is_refused(tmp_path: Path, name: str):
    pictures(tmp_path, f"train/{name}", "train/tea")
    with pytest.raises(DataError, match=f"{tmp_path}/train has .*rename it") as refused:
        index_image_folder(tmp_path, 1, 0.5)
    assert ascii(name) in str(refused.value)
    assert str(refused.value).isprintable()


def test_one_class_in_two_spellings_is_named_with_both(tmp_path: Path):
    pictures(tmp_path, "train/caf\xe9", "train/tea", "val/cafe\u0301", "val/tea")
    with pytest.raises(DataError, match=r"it is 'cafe\\u0301' and 'caf\\xe9', in two Unicode spellings"):
        index_image_folder(tmp_path, 1, 0.5)
    with pytest.raises(DataError, match=r"has a class .* twice: it is 'caf\\xe9' and 'cafe\\u0301'"):
        index_image_folder(pictures(tmp_path / "both", "caf\xe9", "cafe\u0301"), 1, 0.5)
    with pytest.raises(DataError, match="it is 'Tea' and 'tea', in upper and lower case"):
        index_image_folder(pictures(tmp_path / "case", "train/a", "train/tea", "val/a", "val/Tea"), 1, 0.5)


def test_two_ranks_train_on_a_folder_and_name_its_validation_files(flat: Path, tmp_path: Path):
    params = {"epochs": 6, "batch_size": 16, "width": 8, "image_size": 16, "crop_padding": 2, "cutout": 4, "lr": 0.05}
    data = {"train": str(flat), "format": "imagefolder"}
    run = finished(tmp_path / "run", procs=2, recipe="imagefolder/resnet9", params=params, data=data)
    card, split = json.loads(run.part("model.json")), json.loads(run.part("split.json"))
    assert card["classes"] == ["blue", "red", "yellow"]
    assert card["metrics"]["val/acc"] == 1.0
    assert all((flat / name).exists() for name in split["val"])
    assert not list(run.first.glob("images-*"))


def test_ranks_wait_for_decoded_images_by_the_store_and_in_no_collective(flat: Path, monkeypatch: pytest.MonkeyPatch):
    """NCCL ends a job whose collective takes ten minutes; decoding a large data set takes longer."""
    waits: list[str] = []
    monkeypatch.setattr(DistributedContext, "wait_for_peers", lambda _, what: waits.append(what))
    monkeypatch.setattr(DistributedContext, "is_stopping", lambda *_: False)
    monkeypatch.setattr(DistributedContext, "all_reduce", lambda *_: pytest.fail("a collective"))
    source = open_source(flat, place=DistributedContext(0, 2, 0, torch.device("cpu")))
    assert source(24, True).size == 24
    assert source(16, False).size == 16
    assert waits[:2] == [
        "48 train images to be decoded, wait 0",
        "the file of decoded images, train, to be opened, wait 1",
    ]
    assert len(waits) == len(set(waits)) == 10  # a name counts once in the life of a process group


def test_decoding_that_is_given_up_leaves_the_rest_and_no_file_that_counts(flat: Path, tmp_path: Path):
    images, _ = index_image_folder(flat, 1, 0.5)
    asked: list[int] = []

    def give_up() -> bool:
        asked.append(1)
        return len(asked) == 2

    decode_to_file(
        tmp_path / "train", images, [ResizeSpec(8, 8)] * len(images), None, skip=False, give_up=give_up
    )  # fmt: skip
    assert len(asked) == 2 < len(images)
    assert not metadata_path(tmp_path / "train").exists()


@pytest.mark.parametrize(
    ("broken", "look_on", "said"),
    [
        (1, 10_000, r"on_corrupt=skip$"),
        (3, 10_000, r"blue/00\.jpg cannot .*skip\. 3 of 60 images are unreadable, also \S+/01\.jpg, \S+/02\.jpg$"),
        (7, 10_000, r"7 of 60 images are unreadable, also (\S+, ){3}\S+/04\.jpg and 2 more$"),
        (7, 0, r"blue/00\.jpg cannot .*skip(\. \d of [1-5]?\d images are unreadable.*)?$"),
    ],
)
def test_the_first_unreadable_images_are_named_and_all_are_counted(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int, look_on: int, said: str
):
    monkeypatch.setattr(mapped_images, "LOOK_ON", look_on)
    for number in range(broken):
        (flat / "blue" / f"{number:02d}.jpg").write_bytes(b"broken")
    images, _ = index_folders(flat)
    with pytest.raises(DataError, match=said):
        decode_to_file(tmp_path / "train", images, [ResizeSpec(8, 8)] * len(images), None, skip=False)


def test_a_corrupt_image_ends_the_job_as_a_data_error(flat: Path, tmp_path: Path):
    (flat / "blue" / "03.jpg").write_bytes(b"broken")
    data = {"train": str(flat), "format": "imagefolder"}
    with gang(tmp_path / "run", recipe="imagefolder/resnet9", params={"image_size": 16}, data=data) as run:
        assert run.wait() == [1]
    (word,) = run.exits()
    assert word["error"]["kind"] == "data"
    assert str(flat / "blue" / "03.jpg") in word["error"]["message"]
