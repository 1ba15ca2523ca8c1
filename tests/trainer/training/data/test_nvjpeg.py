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
from shoestring_trainer.training.data.dataset import ImageDataset
from shoestring_trainer.training.data.decoded_cache import DecodedCache
from shoestring_trainer.training.data.decoding import ResizeSpec, decode_image
from shoestring_trainer.training.data.image_files import open_image_bytes
from shoestring_trainer.training.data.image_folder import index_image_folder
from shoestring_trainer.training.data.nvjpeg import JpegDecoder, decode_jpegs, nvjpeg_decoder
from shoestring_trainer.training.errors import DataError, UserError
from shoestring_trainer.training.settings import Settings
from torch import Tensor

from tests.trainer.training.data.sample_images import COLOURS, SINGLE_PROCESS, encode, load, save_image

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
ORIENTATION = 0x0112
SPECS = [
    ResizeSpec(200, 320), ResizeSpec(140, 140), ResizeSpec(90, 120, zoom=1.14), ResizeSpec(190, 190, stretch=True),
    ResizeSpec(300, 420), ResizeSpec(24, 24), ResizeSpec(24, 40, zoom=1.14), ResizeSpec(30, 30, stretch=True),
]  # fmt: skip


def by_pillow(files: list[Tensor]) -> list[Tensor]:
    """Decode with Pillow as nvJPEG does: every image without its EXIF orientation applied, or an error for all."""
    try:
        whole = [np.array(Image.open(io.BytesIO(bytes(file.tolist()))).convert("RGB")) for file in files]
    except OSError as error:
        raise RuntimeError(str(error)) from error
    return [torch.from_numpy(image).permute(2, 0, 1) for image in whole]


@pytest.fixture(params=["Pillow", pytest.param("nvJPEG", marks=pytest.mark.gpu)])
def decoder(request: pytest.FixtureRequest) -> JpegDecoder:
    return by_pillow if request.param == "Pillow" else nvjpeg_decoder(torch.device("cuda", 0))


def landscape(width: int = 320, height: int = 200) -> Image.Image:
    """Return a smooth image that differs in each channel, towards each side and in each corner."""
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    channels = (250 * right, 250 * down**2, 120 + 120 * np.cos(9 * right) * (1 - down))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    return encode(image, quality=95, **{"subsampling": 0, **options})


def both(
    file: bytes, spec: ResizeSpec, decoder: JpegDecoder
) -> tuple[tuple[Tensor, float] | None, tuple[Tensor, float]]:
    """Return an image decoded by the decoder, and by Pillow alone."""
    opener = partial(open_image_bytes, file)
    return decode_jpegs([opener], [spec], decoder)[0], decode_image(opener, Path("a.jpg"), spec)


def distance(one: Tensor, other: Tensor) -> float:
    return (one.float() - other.float()).abs().mean().item()


def tolerance(decoder: JpegDecoder) -> float:
    """Levels of 255 by which smooth images may differ in the mean. Pillow decodes smaller ones for smaller specs."""
    return 0.4 if decoder is by_pillow else 1.5


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_images_are_resized_and_cropped_as_by_pillow(spec: ResizeSpec, decoder: JpegDecoder):
    loaded, expected = both(jpeg(landscape()), spec, decoder)
    assert loaded is not None
    assert loaded[0].shape == expected[0].shape == (3, spec.height, spec.width)
    assert loaded[1] == expected[1] == 1.6
    assert distance(loaded[0], expected[0]) < tolerance(decoder)
    if decoder is by_pillow and spec.width > 80:  # Pillow decodes a smaller image for a smaller spec
        assert distance(loaded[0], expected[0]) < 0.05  # rounding of values halfway between two bytes


def test_an_image_of_the_requested_size_is_unchanged():
    loaded, _ = both(jpeg(landscape()), ResizeSpec(200, 320), by_pillow)
    assert loaded is not None
    assert torch.equal(loaded[0], by_pillow([torch.frombuffer(bytearray(jpeg(landscape())), dtype=torch.uint8)])[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation: int, decoder: JpegDecoder):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for spec in (ResizeSpec(64, 64), ResizeSpec(150, 90, zoom=1.1), ResizeSpec(100, 100, stretch=True)):
        loaded, expected = both(jpeg(landscape(), exif=exif), spec, decoder)
        assert loaded is not None
        assert loaded[1] == expected[1] == (0.625 if orientation > 4 else 1.6)
        assert distance(loaded[0], expected[0]) < tolerance(decoder)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (640, 2), (17, 16)])
def test_unusual_sizes_are_resized(size: tuple[int, int], decoder: JpegDecoder):
    for spec in (ResizeSpec(16, 16), ResizeSpec(40, 24, zoom=1.14), ResizeSpec(20, 20, stretch=True)):
        loaded, expected = both(jpeg(landscape(*size)), spec, decoder)
        assert loaded is not None
        assert distance(loaded[0], expected[0]) < tolerance(decoder)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 2}, {"optimize": True}], ids=str)
def test_every_common_kind_of_jpeg_is_decoded(options: dict[str, object], decoder: JpegDecoder):
    for file in (jpeg(landscape(), **options), jpeg(landscape().convert("L"), **options | {"subsampling": 0})):
        loaded, expected = both(file, ResizeSpec(120, 120), decoder)
        assert loaded is not None
        assert distance(loaded[0], expected[0]) < tolerance(decoder)


def files_for_pillow() -> dict[str, bytes]:
    whole, many = jpeg(landscape()), io.BytesIO()
    landscape().save(many, "MPO", save_all=True, append_images=[landscape()])
    return {
        "png": encode(landscape(), "png"),
        "cmyk": jpeg(landscape().convert("CMYK")),
        "gray with sampling factors": jpeg(landscape().convert("L"), subsampling=2),
        "stored as rgb": jpeg(landscape(), keep_rgb=True),
        "several images": many.getvalue(),
        "cut short": whole[:-100],
        "no image": b"no image",
        "empty": b"",
    }


@pytest.mark.parametrize("kind", files_for_pillow())
def test_files_that_nvjpeg_might_misinterpret_are_left_to_pillow(kind: str):
    def refuse(_: list[Tensor]) -> list[Tensor]:
        raise AssertionError("asked to decode it")

    assert decode_jpegs([partial(open_image_bytes, files_for_pillow()[kind])], [ResizeSpec(16, 16)], refuse) == [None]


def test_large_images_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_GPU_PIXELS", 320 * 200 - 1)
    assert both(jpeg(landscape()), ResizeSpec(16, 16), by_pillow)[0] is None


def test_an_image_that_fails_does_not_change_others_in_its_batch(decoder: JpegDecoder):
    good, bad = jpeg(landscape()), jpeg(landscape(100, 100))

    def refuse_bad(files: list[Tensor]) -> list[Tensor]:
        if any(len(file) == len(bad) for file in files):
            raise RuntimeError("Error while decoding JPEG images")
        return decoder(files)

    openers = [partial(open_image_bytes, file) for file in (good, bad, good)]
    specs = [ResizeSpec(64, 64), ResizeSpec(64, 64), ResizeSpec(48, 32)]
    first, broken, last = decode_jpegs(openers, specs, refuse_bad)
    assert broken is None
    for loaded, spec in ((first, specs[0]), (last, specs[2])):
        alone = both(good, spec, decoder)[0]
        assert loaded is not None
        assert alone is not None
        assert torch.equal(loaded[0], alone[0])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three classes of JPEGs, some grayscale or upside down, and PNGs."""
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
            (folder / name / f"{number:02d}.{kind}").write_bytes(encode(shown, kind, **options))
    return folder


Opened = Callable[..., ImageDataset]


@pytest.fixture
def opened(mixed: Path, tmp_path: Path) -> Opened:
    """Return a function that loads the mixed images with a decoder, or with Pillow alone."""

    def at(decoder: JpegDecoder | None, rectangular: bool = False, keep: bool = False, **options) -> ImageDataset:
        settings = Settings(image_size=32, decode_device="gpu" if decoder else "cpu", **options)
        train, val = index_image_folder(mixed, 1, 0.25)
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        cache = DecodedCache(train, val, settings, {}, scratch, keep, True, SINGLE_PROCESS, decoder)
        return cache.load(0, rectangular)

    return at


@pytest.mark.parametrize(
    "options", [{}, {"crop_scale": 0.35, "eval_resize_factor": 1.14, "rectangular": True}], ids=str
)
def test_a_folder_is_the_same_by_either_decoder(
    opened: Opened, decoder: JpegDecoder, options, capsys: pytest.CaptureFixture[str]
):
    loaded, expected = opened(decoder, **options), opened(None, **options)
    assert "nvJPEG decoded 24 of 27 images, Pillow the rest" in capsys.readouterr().out
    assert loaded.split == expected.split
    for ours, theirs in ((loaded.train, expected.train), (loaded.val, expected.val)):
        assert torch.equal(ours.labels_N, theirs.labels_N)
        differences = (ours.images_NCHW.float() - theirs.images_NCHW.float()).abs().mean((1, 2, 3))
        assert differences.max() < tolerance(decoder)
        if ours.aspect_ratios_N is not None or theirs.aspect_ratios_N is not None:
            assert torch.equal(ours.aspect_ratios_N, theirs.aspect_ratios_N)
    assert (loaded.train.aspect_ratios_N is not None, len(loaded.val_batches)) == ((True, 1) if options else (False, 0))
    for (numbers, ours), (same, theirs) in zip(loaded.val_batches, expected.val_batches, strict=True):
        assert torch.equal(numbers, same)
        assert distance(ours, theirs) < tolerance(decoder)


def test_the_cache_holds_what_the_decoder_returned(opened: Opened):
    black = opened(lambda files: [torch.zeros(3, 90, 70, dtype=torch.uint8) for _ in files])
    lit = black.train.images_NCHW.amax((1, 2, 3)).gt(0).sum() + black.val.images_NCHW.amax((1, 2, 3)).gt(0).sum()
    assert lit == 3  # the PNGs


BROKEN = {"blue/02.jpeg": b"broken", "red/07.jpeg": None, "yellow/03.png": b""}
"""Files to damage and their new content; None: truncated."""


def damage(folder: Path) -> None:
    for name, content in BROKEN.items():
        path = folder / name
        path.write_bytes(path.read_bytes()[:-300] if content is None else content)


def test_unreadable_images_are_skipped_and_logged_as_by_pillow(
    mixed: Path, opened: Opened, decoder: JpegDecoder, capsys: pytest.CaptureFixture[str]
):
    damage(mixed)
    loaded, log = opened(decoder, on_corrupt="skip"), ADDRESS.sub("", capsys.readouterr().out)
    expected, expected_log = opened(None, on_corrupt="skip"), ADDRESS.sub("", capsys.readouterr().out)
    assert loaded.skipped == expected.skipped == 3
    assert [line for line in log.splitlines() if not line.startswith("nvJPEG")] == expected_log.splitlines()
    assert loaded.split == expected.split
    assert torch.equal(loaded.train.labels_N, expected.train.labels_N)
    assert distance(loaded.train.images_NCHW, expected.train.images_NCHW) < tolerance(decoder)


@pytest.mark.parametrize("name", BROKEN)
def test_an_unreadable_image_raises_the_same_error_as_by_pillow(
    mixed: Path, opened: Opened, decoder: JpegDecoder, name: str
):
    content = BROKEN[name]
    (mixed / name).write_bytes((mixed / name).read_bytes()[:-300] if content is None else content)
    messages = []
    for by in (decoder, None):
        with pytest.raises(DataError, match=f"{name} cannot be read") as refused:
            opened(by)
        messages.append(ADDRESS.sub("", str(refused.value)))
    assert messages[0] == messages[1]


def test_images_cached_by_one_decoder_are_not_used_for_the_other(opened: Opened, tmp_path: Path):
    for by in (by_pillow, None, by_pillow, None):
        opened(by, keep=True)
    assert len(list((tmp_path / "scratch").iterdir())) == 2


def test_without_a_gpu_it_is_rejected_before_anything_is_decoded(tmp_path: Path):
    for name, colour in COLOURS.items():
        for number in range(3):
            save_image(tmp_path / "images" / name / f"{number}.jpg", colour, number)
    (tmp_path / "images" / "red" / "0.jpg").write_bytes(b"broken, which only decoding detects")
    with pytest.raises(UserError, match=r"no CUDA device; rent machines with a GPU, or set decode_device: cpu"):
        load(tmp_path / "images", decode_device="gpu")


def test_a_torchvision_without_nvjpeg_is_rejected_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    from shoestring_trainer.training.vision_compat import io as vision_io

    monkeypatch.setattr(vision_io.image, "_has_image_ops", lambda: False)
    with pytest.raises(UserError, match=r"torchvision can't decode on this GPU .*install matching CUDA builds"):
        nvjpeg_decoder(torch.device("cuda", 0))
