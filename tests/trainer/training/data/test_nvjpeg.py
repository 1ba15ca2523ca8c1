# SPDX-License-Identifier: Apache-2.0
"""`decode_device: gpu` gives what Pillow gives. Without a GPU Pillow stands for nvJPEG; all around it is real."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shoestring_trainer.training.data import nvjpeg as module
from shoestring_trainer.training.data.decoded_cache import Copies
from shoestring_trainer.training.data.decoding import Frame, decode, open_bytes
from shoestring_trainer.training.data.folders import split_folder
from shoestring_trainer.training.data.images import DataSet
from shoestring_trainer.training.data.nvjpeg import Decoder, decode_jpegs, nvjpeg
from shoestring_trainer.training.errors import DataError, UserError
from shoestring_trainer.training.settings import Settings
from torch import Tensor

from tests.trainer.training.data.painted import COLOURS, encoded, load, paint

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
ORIENTATION = 0x0112
FRAMES = [
    Frame(200, 320), Frame(140, 140), Frame(90, 120, zoom=1.14), Frame(190, 190, squeezed=True), Frame(300, 420),
    Frame(24, 24), Frame(24, 40, zoom=1.14), Frame(30, 30, squeezed=True),
]  # fmt: skip


def by_pillow(files: list[Tensor]) -> list[Tensor]:
    """What nvJPEG gives, from Pillow: every image whole and as stored, or an error for all."""
    try:
        whole = [np.array(Image.open(io.BytesIO(bytes(file.tolist()))).convert("RGB")) for file in files]
    except OSError as error:
        raise RuntimeError(str(error)) from error
    return [torch.from_numpy(image).permute(2, 0, 1) for image in whole]


@pytest.fixture(params=["Pillow", pytest.param("nvJPEG", marks=pytest.mark.gpu)])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return by_pillow if request.param == "Pillow" else nvjpeg(torch.device("cuda", 0))


def landscape(width: int = 320, height: int = 200) -> Image.Image:
    """Smooth, and different in each channel, towards each side and in each corner."""
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    channels = (250 * right, 250 * down**2, 120 + 120 * np.cos(9 * right) * (1 - down))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    return encoded(image, quality=95, **{"subsampling": 0, **options})


def both(file: bytes, frame: Frame, decoder: Decoder) -> tuple[tuple[Tensor, float] | None, tuple[Tensor, float]]:
    """An image by the decoder, and by Pillow alone."""
    opener = partial(open_bytes, file)
    return decode_jpegs([opener], [frame], decoder)[0], decode(opener, Path("a.jpg"), frame)


def distance(one: Tensor, other: Tensor) -> float:
    return (one.float() - other.float()).abs().mean().item()


def tolerance(decoder: Decoder) -> float:
    """Levels of 255 by which smooth images may differ in the mean. Pillow decodes smaller ones for smaller frames."""
    return 0.4 if decoder is by_pillow else 1.5


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_a_frame_shows_what_pillow_shows(frame: Frame, decoder: Decoder):
    found, wanted = both(jpeg(landscape()), frame, decoder)
    assert found is not None
    assert found[0].shape == wanted[0].shape == (3, frame.height, frame.width)
    assert found[1] == wanted[1] == 1.6
    assert distance(found[0], wanted[0]) < tolerance(decoder)
    if decoder is by_pillow and frame.width > 80:  # Pillow decodes a smaller image for a smaller frame
        assert distance(found[0], wanted[0]) < 0.05  # what falls halfway between two bytes


def test_an_image_of_the_frames_size_is_left_as_it_is():
    found, _ = both(jpeg(landscape()), Frame(200, 320), by_pillow)
    assert found is not None
    assert torch.equal(found[0], by_pillow([torch.frombuffer(bytearray(jpeg(landscape())), dtype=torch.uint8)])[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_camera_was_held(orientation: int, decoder: Decoder):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for frame in (Frame(64, 64), Frame(150, 90, zoom=1.1), Frame(100, 100, squeezed=True)):
        found, wanted = both(jpeg(landscape(), exif=exif), frame, decoder)
        assert found is not None
        assert found[1] == wanted[1] == (0.625 if orientation > 4 else 1.6)
        assert distance(found[0], wanted[0]) < tolerance(decoder)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (640, 2), (17, 16)])
def test_odd_sizes_come_to_the_frame(size: tuple[int, int], decoder: Decoder):
    for frame in (Frame(16, 16), Frame(40, 24, zoom=1.14), Frame(20, 20, squeezed=True)):
        found, wanted = both(jpeg(landscape(*size)), frame, decoder)
        assert found is not None
        assert distance(found[0], wanted[0]) < tolerance(decoder)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 2}, {"optimize": True}], ids=str)
def test_every_common_kind_of_jpeg_is_decoded(options: dict[str, object], decoder: Decoder):
    for image in (landscape(), landscape().convert("L")):
        found, wanted = both(jpeg(image, **options), Frame(120, 120), decoder)
        assert found is not None
        assert distance(found[0], wanted[0]) < tolerance(decoder)


def files_for_pillow() -> dict[str, bytes]:
    whole, many = jpeg(landscape()), io.BytesIO()
    landscape().save(many, "MPO", save_all=True, append_images=[landscape()])
    return {
        "png": encoded(landscape(), "png"),
        "cmyk": jpeg(landscape().convert("CMYK")),
        "stored as rgb": jpeg(landscape(), keep_rgb=True),
        "several images": many.getvalue(),
        "cut short": whole[:-100],
        "no image": b"no image",
        "empty": b"",
    }


@pytest.mark.parametrize("kind", files_for_pillow())
def test_what_nvjpeg_might_get_wrong_is_left_to_pillow(kind: str):
    def refuse(_: list[Tensor]) -> list[Tensor]:
        raise AssertionError("asked to decode it")

    assert decode_jpegs([partial(open_bytes, files_for_pillow()[kind])], [Frame(16, 16)], refuse) == [None]


def test_large_images_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LARGEST_ON_GPU", 320 * 200 - 1)
    assert both(jpeg(landscape()), Frame(16, 16), by_pillow)[0] is None


def test_images_beside_one_that_fails_come_out_as_they_would_alone(decoder: Decoder):
    good, bad = jpeg(landscape()), jpeg(landscape(100, 100))

    def refuse_bad(files: list[Tensor]) -> list[Tensor]:
        if any(len(file) == len(bad) for file in files):
            raise RuntimeError("Error while decoding JPEG images")
        return decoder(files)

    openers = [partial(open_bytes, file) for file in (good, bad, good)]
    frames = [Frame(64, 64), Frame(64, 64), Frame(48, 32)]
    first, broken, last = decode_jpegs(openers, frames, refuse_bad)
    assert broken is None
    for found, frame in ((first, frames[0]), (last, frames[2])):
        alone = both(good, frame, decoder)[0]
        assert found is not None
        assert alone is not None
        assert torch.equal(found[0], alone[0])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three classes of JPEGs, grey and upside down ones among them, and PNGs."""
    upside_down = Image.Exif()
    upside_down[ORIENTATION] = 3
    folder = tmp_path / "images"
    for shift, name in enumerate(COLOURS):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            image = landscape(60 + 8 * number, 80 + shift)
            kind = {3: "png"}.get(number, "jpeg")
            options = {"quality": 95, "exif": upside_down} if number == 5 else {"quality": 95}
            shown = image.convert("L") if number == 4 else image
            (folder / name / f"{number:02d}.{kind}").write_bytes(encoded(shown, kind, **options))
    return folder


Opened = Callable[..., DataSet]


@pytest.fixture
def opened(mixed: Path, tmp_path: Path) -> Opened:
    """The mixed images by a decoder, or by Pillow alone."""

    def at(decoder: Decoder | None, rectangular: bool = False, kept: bool = False, **options) -> DataSet:
        settings = Settings(image_size=32, decode_device="gpu" if decoder else "cpu", **options)
        train, held_out = split_folder(mixed, 1, 0.25)
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        copies = Copies(train, held_out, settings, {}, scratch, kept, True, lambda: None, decoder)
        return copies.at(0, rectangular)

    return at


@pytest.mark.parametrize(
    "options", [{}, {"crop_scale": 0.35, "eval_resize_factor": 1.14, "rectangular_eval": True}], ids=str
)
def test_a_folder_is_the_same_by_either(opened: Opened, decoder: Decoder, options, capsys: pytest.CaptureFixture[str]):
    found, wanted = opened(decoder, **options), opened(None, **options)
    assert "nvJPEG decoded 24 of 27 images, Pillow the rest" in capsys.readouterr().out
    assert found.split == wanted.split
    for ours, theirs in ((found.train, wanted.train), (found.held_out, wanted.held_out)):
        assert torch.equal(ours.labels_N, theirs.labels_N)
        differences = (ours.images_NCHW.float() - theirs.images_NCHW.float()).abs().mean((1, 2, 3))
        assert differences.max() < tolerance(decoder)
        if ours.aspects_N is not None or theirs.aspects_N is not None:
            assert torch.equal(ours.aspects_N, theirs.aspects_N)
    assert (found.train.aspects_N is not None, len(found.batches)) == ((True, 1) if options else (False, 0))
    for (numbers, ours), (same, theirs) in zip(found.batches, wanted.batches, strict=True):
        assert torch.equal(numbers, same)
        assert distance(ours, theirs) < tolerance(decoder)


def test_what_is_kept_is_what_the_decoder_gave(opened: Opened):
    black = opened(lambda files: [torch.zeros(3, 90, 70, dtype=torch.uint8) for _ in files])
    lit = black.train.images_NCHW.amax((1, 2, 3)).gt(0).sum() + black.held_out.images_NCHW.amax((1, 2, 3)).gt(0).sum()
    assert lit == 3  # the PNGs


BROKEN = {"blue/02.jpeg": b"broken", "red/07.jpeg": None, "yellow/03.png": b""}
"""Files to damage; None: cut short."""


def damage(folder: Path) -> None:
    for name, content in BROKEN.items():
        path = folder / name
        path.write_bytes(path.read_bytes()[:-300] if content is None else content)


def test_unreadable_images_are_left_out_and_told_of_as_by_pillow(
    mixed: Path, opened: Opened, decoder: Decoder, capsys: pytest.CaptureFixture[str]
):
    damage(mixed)
    found, told = opened(decoder, on_corrupt="skip"), ADDRESS.sub("", capsys.readouterr().out)
    wanted, said = opened(None, on_corrupt="skip"), ADDRESS.sub("", capsys.readouterr().out)
    assert found.skipped == wanted.skipped == 3
    assert [line for line in told.splitlines() if not line.startswith("nvJPEG")] == said.splitlines()
    assert found.split == wanted.split
    assert torch.equal(found.train.labels_N, wanted.train.labels_N)
    assert distance(found.train.images_NCHW, wanted.train.images_NCHW) < tolerance(decoder)


@pytest.mark.parametrize("name", BROKEN)
def test_an_unreadable_image_ends_the_job_in_the_same_words(mixed: Path, opened: Opened, decoder: Decoder, name: str):
    content = BROKEN[name]
    (mixed / name).write_bytes((mixed / name).read_bytes()[:-300] if content is None else content)
    messages = []
    for by in (decoder, None):
        with pytest.raises(DataError, match=f"{name} cannot be read") as refused:
            opened(by)
        messages.append(ADDRESS.sub("", str(refused.value)))
    assert messages[0] == messages[1]


def test_kept_images_of_one_decoder_are_not_taken_for_the_others(opened: Opened, tmp_path: Path):
    for by in (by_pillow, None, by_pillow, None):
        opened(by, kept=True)
    assert len(list((tmp_path / "scratch").iterdir())) == 2


def test_without_a_gpu_it_is_refused_before_anything_is_decoded(tmp_path: Path):
    for name, colour in COLOURS.items():
        for number in range(3):
            paint(tmp_path / "images" / name / f"{number}.jpg", colour, number)
    (tmp_path / "images" / "red" / "0.jpg").write_bytes(b"broken, which only decoding would find")
    with pytest.raises(UserError, match=r"no CUDA device; rent machines with a GPU, or set decode: cpu"):
        load(tmp_path / "images", decode_device="gpu")


def test_a_torchvision_that_cant_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    from shoestring_trainer.training.vision_compat import io as vision_io

    monkeypatch.setattr(vision_io.image, "_has_image_ops", lambda: False)
    with pytest.raises(UserError, match=r"torchvision can't decode on this GPU .*install the CUDA builds"):
        nvjpeg(torch.device("cuda", 0))
