# SPDX-License-Identifier: Apache-2.0
"""Unusual images and folders: read as a viewer shows them, or rejected by name; cached images are never mixed up."""

from __future__ import annotations

import os
import resource
import struct
import warnings
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from shoestring_trainer.training.cli.predict import list_files
from shoestring_trainer.training.cli.prepare import index_source
from shoestring_trainer.training.data import decoded_cache, mapped_images
from shoestring_trainer.training.data.decoding import ResizeSpec, decode_file
from shoestring_trainer.training.data.image_files import open_image_file
from shoestring_trainer.training.data.image_folder import index_class_folders
from shoestring_trainer.training.data.prepare_shards import prepare_shards
from shoestring_trainer.training.data.shard_plan import PrepareOptions
from shoestring_trainer.training.data.shard_reader import ShardReader
from shoestring_trainer.training.data.stored_image import store_image
from shoestring_trainer.training.errors import DataError

from tests.trainer.training.data.sample_images import COLOURS, load, open_source, sample_image, save_image

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""How each EXIF orientation stores an image (the inverse of what a viewer applies)."""


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words for it")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        for number in range(10):
            save_image(tmp_path / "images" / name / f"{number:02d}.jpg", colour, number)
    return tmp_path / "images"


def four_corners() -> Image.Image:
    """Return a wide image whose corners all differ."""
    pixels = np.zeros((200, 320, 3), np.uint8)
    pixels[:100, :160], pixels[:100, 160:], pixels[100:, :160] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", TURNS)
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str):
    exif, stored = Image.Exif(), four_corners().transpose(TURNS[orientation])
    exif[ORIENTATION] = orientation
    stored.save(tmp_path / f"turned.{suffix}", exif=exif)
    four_corners().save(tmp_path / "upright.png")
    for spec in (ResizeSpec(32, 32), ResizeSpec(20, 40, zoom=1.1), ResizeSpec(24, 24, stretch=True)):
        seen, aspect = decode_file(tmp_path / f"turned.{suffix}", spec)
        expected, _ = decode_file(tmp_path / "upright.png", spec)
        assert aspect == 1.6
        assert (seen.int() - expected.int()).abs().float().mean() < 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 40, b"x"])
def test_a_damaged_exif_block_is_ignored(tmp_path: Path, block: bytes):
    four_corners().save(tmp_path / "a.jpg", exif=block)
    four_corners().save(tmp_path / "b.jpg")
    assert torch.equal(*(decode_file(tmp_path / name, ResizeSpec(32, 32))[0] for name in ("a.jpg", "b.jpg")))


def test_only_the_orientation_is_read_from_exif(tmp_path: Path):
    """The other values of the block may be anything: here a negative rational, which can't be written back."""
    exif = struct.pack(
        "<6s2sHIH HHII HHII I2i", b"Exif\0\0", b"II", 42, 8, 2,
        ORIENTATION, 3, 1, 6, 0x011A, 10, 1, 38, 0, -72, 1,
    )  # fmt: skip
    four_corners().transpose(TURNS[6]).save(tmp_path / "turned.jpg", exif=exif)
    four_corners().save(tmp_path / "upright.png")
    seen, aspect = decode_file(tmp_path / "turned.jpg", ResizeSpec(32, 32))
    assert aspect == 1.6
    assert (seen.int() - decode_file(tmp_path / "upright.png", ResizeSpec(32, 32))[0].int()).abs().float().mean() < 6


@pytest.mark.parametrize(
    "error", [struct.error, TypeError, AttributeError, RuntimeError, NotImplementedError, MemoryError, Unspeakable]
)
def test_whatever_goes_wrong_in_an_image_is_that_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
):
    four_corners().save(tmp_path / "odd.png")

    def fail(*_: object) -> None:
        raise error("deep inside")

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(DataError, match=rf"{tmp_path / 'odd.png'} cannot be read as an image \((deep inside|Unspeak)"):
        decode_file(tmp_path / "odd.png", ResizeSpec(8, 8))
    with pytest.raises(DataError, match=rf"{tmp_path / 'odd.png'} cannot be read as an image \((deep inside|Unspeak)"):
        store_image(partial(open_image_file, tmp_path / "odd.png"), tmp_path / "odd.png", 8, 90)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is empty"),
        (bytes(100), "zeros only"),
        (b"\xef\xbb\xbf \n<!DOCTYPE html><p>404", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "a Git LFS pointer .*: run `git lfs pull`"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, .* convert it"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
        (b"\x89PNG cut", "a PNG that is damaged or cut off"),
        (b"<svg xmlns=''/>", "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "PostScript, .* convert it"),
        (b"no image at all", r"its first bytes are b'no image at "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_no_picture_is_said_to_be_what_its_first_bytes_are(tmp_path: Path, content: bytes, what: str):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"{tmp_path / 'a.jpg'} cannot be read as an image \(.*{what}"):
        decode_file(tmp_path / "a.jpg", ResizeSpec(8, 8))


@pytest.mark.parametrize("kind", ["sparse", "pipe", "device", "folder"])
def test_what_is_no_picture_of_bounded_size_is_neither_read_nor_waited_for(tmp_path: Path, kind: str):
    path = tmp_path / "x.jpg"
    match kind:
        case "sparse":
            path.touch()
            os.truncate(path, 256 << 30)
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            path.mkdir()
    expected = "it has 274,877,906,944 bytes" if kind == "sparse" else f"it is a {kind}"
    with pytest.raises(DataError, match=rf"x\.jpg cannot be read as an image \({expected}, where"):
        decode_file(path, ResizeSpec(8, 8))


def test_no_warning_without_a_file_name_is_printed(flat: Path):
    save_with_damaged_exif(flat / "red" / "odd.tif")
    (flat / "red" / "large.png").write_bytes(png(9_480, 9_480, 8, 0, b"\0" * 9_480))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(flat, on_corrupt="skip")
    assert [str(warning.message) for warning in caught] == []


def save_with_damaged_exif(file: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # Pillow reads it here too
        four_corners().save(file, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12")


def test_nor_is_one_where_shards_are_decoded(flat: Path, tmp_path: Path):
    save_with_damaged_exif(flat / "red" / "odd.jpg")
    index = prepare_shards(
        index_source(flat, skip=False), tmp_path / "shards", PrepareOptions(400, 90, 50, False), 1, lambda _: None
    )
    reader = ShardReader(tmp_path / "shards", index)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = reader.decode(reader.chunk(reader.rows_of("train"), ResizeSpec(8, 8)))
    assert len(images) == 10 * len(COLOURS) + 1
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_every_color_mode_is_converted_to_rgb(tmp_path: Path, mode: str):
    suffix = {"CMYK": "tif", "YCbCr": "jpg", "PA": "tif"}.get(mode, "png")
    light, path = Image.new("RGB", (30, 20), (255, 255, 255)).convert("L" if mode == "PA" else mode), tmp_path / "a"
    light.save(path.with_suffix(f".{suffix}"))
    seen, _ = decode_file(path.with_suffix(f".{suffix}"), ResizeSpec(16, 16))
    assert seen.shape == (3, 16, 16)
    assert seen.min() > 245


def test_the_first_frame_of_an_animation_is_used(tmp_path: Path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in COLOURS.values()]
    for suffix in ("gif", "webp", "png"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        seen, _ = decode_file(tmp_path / f"a.{suffix}", ResizeSpec(8, 8))
        assert (seen.float().mean((1, 2)) - torch.tensor(COLOURS["blue"])).abs().max() < 12


def png(width: int, height: int, bits: int, colours: int, pixels: bytes) -> bytes:
    """Return a PNG file of any bit depth."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    rows = b"".join(b"\0" + pixels for _ in range(height if height < 1000 else 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_color_keeps_its_brightness(tmp_path: Path):
    (tmp_path / "deep.png").write_bytes(png(8, 8, 16, 2, struct.pack(">3H", 0xFF00, 0x8000, 0x0100) * 8))
    seen, _ = decode_file(tmp_path / "deep.png", ResizeSpec(8, 8))
    assert seen[:, 0, 0].tolist() == [255, 128, 1]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [11_000, 60_000])
def test_a_decompression_bomb_is_rejected_by_name(tmp_path: Path, side: int):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(side, side, 8, 2, b"\0" * 3 * side))
    with pytest.raises(DataError, match=rf"{bomb} .*({side} x {side} pixels|exceeds limit).*remove it"):
        decode_file(bomb, ResizeSpec(8, 8))


def test_hidden_files_and_folders_are_ignored(flat: Path):
    (flat / "red" / "._05.jpg").write_bytes(b"a macOS metadata file")
    (flat / "red" / ".DS_Store").write_bytes(b"another one")
    save_image(flat / "red" / ".ipynb_checkpoints" / "05.jpg", COLOURS["red"], 5)
    save_image(flat / ".trash" / "05.jpg", COLOURS["red"], 5)
    data = load(flat)
    assert (len(data.train) + len(data.val), data.classes) == (30, sorted(COLOURS))
    assert len(list_files([flat])) == 30


def test_images_in_nested_and_linked_folders_are_indexed_once(flat: Path, tmp_path: Path):
    save_image(flat / "red" / "more" / "even more.jpg" / "a.jpg", COLOURS["red"], 1)
    save_image(tmp_path / "elsewhere" / "b.jpg", COLOURS["red"], 2)
    (flat / "red" / "linked").symlink_to(tmp_path / "elsewhere")
    (flat / "red" / "round").symlink_to(flat / "red")
    (flat / "red" / "up").symlink_to(flat)
    found = [name for name in index_class_folders(flat).names if name.startswith("red")]
    assert len(found) == len(set(found)) == 12
    assert {"red/more/even more.jpg/a.jpg", "red/linked/b.jpg"} <= set(found)


def test_folders_that_link_to_each_other_are_walked_once(flat: Path):
    """Twelve of them have more paths than can be walked."""
    folders = [flat / "red" / f"more-{number}" for number in range(12)]
    for folder in folders:
        folder.mkdir()
        save_image(folder / "a.jpg", COLOURS["red"], 1)
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    assert len(index_class_folders(flat)) == 30 + len(folders)


def test_a_class_folder_that_links_to_its_parent_is_rejected(flat: Path):
    (flat / "all").symlink_to(flat)
    with pytest.raises(DataError, match=f"the class folder {flat / 'all'} holds no image"):
        index_class_folders(flat)


@pytest.mark.parametrize("target", ["nowhere.jpg", "link.jpg"])
def test_a_broken_link_is_named(flat: Path, target: str):
    (flat / "red" / "link.jpg").symlink_to(flat / "red" / target)
    with pytest.raises(DataError, match=rf"{flat / 'red' / 'link.jpg'} cannot be read"):
        load(flat)
    assert load(flat, on_corrupt="skip").skipped == 1


def test_a_named_pipe_is_not_opened(flat: Path):
    os.mkfifo(flat / "red" / "pipe.jpg")
    assert len(index_class_folders(flat)) == 30


def test_an_unreadable_folder_is_named(flat: Path, monkeypatch: pytest.MonkeyPatch):
    closed, scan = flat / "red" / "closed", os.scandir
    closed.mkdir()

    def refuse(path: Path) -> object:  # permissions don't stop root, who may run this
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=f"cannot read {closed}: Permission denied"):
        load(flat)


def test_a_name_that_isnt_utf8_is_rejected(flat: Path):
    (flat / "red" / "05.jpg").rename(flat / "red" / os.fsdecode(b"caf\xe9.jpg"))
    with pytest.raises(DataError, match=r"red/caf\\udce9.jpg' isn't UTF-8; rename it"):
        load(flat)


def test_images_outside_the_class_folders_are_logged(flat: Path, capsys: pytest.CaptureFixture[str]):
    save_image(flat / "lost.jpg", COLOURS["red"], 1)
    data = load(flat)
    assert len(data.train) + len(data.val) == 30
    ignored = "ignored 1 file (not images by their extension, or outside the class folders); the first is "
    assert f"{ignored}{flat / 'lost.jpg'}" in capsys.readouterr().out


def test_whatever_the_name_of_an_ignored_file_is_it_is_logged_as_plain_text(
    flat: Path, capsys: pytest.CaptureFixture[str]
):
    (flat / "red" / os.fsdecode(b"a\xff\x1b[2Jb\n.txt")).touch()
    load(flat)
    assert f"the first is {flat / 'red'}/a\\udcffb\n.txt\n" in capsys.readouterr().out


def test_a_class_with_one_image_is_named_before_anything_is_decoded(flat: Path):
    (flat / "red" / "00.jpg").write_bytes(b"broken")
    for number in range(1, 10):
        (flat / "red" / f"{number:02d}.jpg").unlink()
    with pytest.raises(DataError, match=r'class "red" in .* has too few valid images for a train/val split'):
        load(flat)


def test_skipped_images_leave_no_gap_and_no_copy_is_made(flat: Path, monkeypatch: pytest.MonkeyPatch):
    whole = load(flat, val_fraction=0.1)
    (flat / "blue" / "03.jpg").write_bytes(b"broken")
    (flat / "red" / "07.jpg").write_bytes(b"broken")
    monkeypatch.setattr(mapped_images, "DECODE_CHUNK_SIZE", 3)
    rest = load(flat, val_fraction=0.1, on_corrupt="skip")
    kept = [number for number in range(30) if number not in (3, 17)]
    names = [f"{name}/{number:02d}.jpg" for name in sorted(COLOURS) for number in range(10)]
    trained = [name for name in names if name not in whole.split["val"]]
    expected = [at for at, name in enumerate(trained) if names.index(name) in kept]
    assert torch.equal(rest.train.images_NCHW, whole.train.images_NCHW[expected])
    assert rest.train.labels_N.tolist() == whole.train.labels_N[expected].tolist()


def test_a_size_too_large_for_the_disk_is_rejected_before_anything_is_decoded(flat: Path):
    (flat / "red" / "05.jpg").write_bytes(b"broken, which only decoding detects")
    with pytest.raises(DataError, match=r"30 images of .* take .* GiB once decoded for size 400000.*lower image_size"):
        open_source(flat, epochs=2, image_size_schedule="0:16 0.5:400000")


def test_a_disk_that_fills_up_raises_an_error_and_not_a_signal(flat: Path):
    opened = open_source(flat)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(DataError, match=r"need .* GiB under .*File too large.*larger disk"):
            opened(0, False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(flat.parent.glob("images-*"))


def test_cached_images_are_not_used_for_other_settings(flat: Path, tmp_path: Path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    first = load(flat, scratch=scratch)
    (flat / "red" / "05.jpg").write_bytes(b"broken")
    assert torch.equal(load(flat, scratch=scratch).train.images_NCHW, first.train.images_NCHW)
    for other in ({"seed": 2}, {"image_size": 20}, {"crop_scale": 0.5}):
        with pytest.raises(DataError, match=r"05\.jpg"):
            load(flat, scratch=scratch, **other)
    assert load(flat, scratch=scratch, on_corrupt="skip").skipped == 1
    (flat / "red" / "05.jpg").unlink()
    assert len(load(flat, scratch=scratch).train) == len(first.train) - 1


def test_incomplete_cache_files_are_written_again(flat: Path, tmp_path: Path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    whole = load(flat, scratch=scratch).train.images_NCHW.clone()
    [place] = scratch.iterdir()
    (place / "train.json").unlink()
    (place / "train").write_bytes(b"half of it")
    assert torch.equal(load(flat, scratch=scratch).train.images_NCHW, whole)


def test_other_sizes_are_evicted_if_the_disk_is_short_of_space(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    opened = open_source(flat, scratch=scratch)
    opened(16, False)
    opened(20, True)
    assert len(list(scratch.iterdir())) == 2
    monkeypatch.setattr(decoded_cache, "free_bytes", lambda _: 0)
    opened(24, False)
    assert len(list(scratch.iterdir())) == 1


def test_each_size_has_its_own_files_and_old_ones_free_their_disk_space(flat: Path):
    opened = open_source(flat)

    def mapped() -> int:
        ours = str(flat.parent / "images-")
        return len({line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines() if ours in line})

    small = opened(16, False)
    assert (small.size, mapped()) == (16, 2)
    del small
    assert mapped() == 0
    large = opened(24, True)
    assert (large.size, mapped()) == (24, 3)
    assert sample_image(COLOURS["red"], 1).size == (20, 24)
