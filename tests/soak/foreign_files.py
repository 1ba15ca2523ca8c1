# SPDX-License-Identifier: Apache-2.0
"""Damaged pictures, archives and folders are read, or refused by name; nothing else happens.

    python -m tests.soak.foreign_files --case CASE --seed N

`pictures` damages 30,000 pictures a seed, of twelve formats and at most 64 pixels a side; `archives` makes 500 image
folders and WebDataset shards a seed with odd names, labels, links and damage.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import sys
import tarfile
import tempfile
import warnings
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image
from shoestring_trainer.training.data.decoding import ResizeSpec, decode_image
from shoestring_trainer.training.data.image_files import FORMATS, ignored_pillow_warnings, open_image_bytes
from shoestring_trainer.training.errors import DataError

from tests.fuzzing import Case, Findings, main, refused, summarise, try_each
from tests.trainer.training.data.sample_images import load

__all__ = ["CASES", "SEEDS", "summarise"]

SEEDS = 10
MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK")
SIZE = ResizeSpec(8, 8)
WORDS = (
    "train", "val", "test", "Training", "eval", "cat", "dog", "caf\xe9", "cafe\u0301", ".hidden", "a b", "x" * 80, "0",
    "-1", "classes.txt", os.fsdecode(b"\xff"), "train\u2028",
)  # fmt: skip
SHARDS = (("a", "b"), ("train-0", "val-0", "test-0"), ("train/0", "val/0"), ("train-0", "eval", "a", "val/0"))
PREFIXES = ("", ".", "\xfc")
LABELS = (b"0", b"1", b"2", b"-1", b"cat", b"", b"\xff", b"\xef\xbb\xbf1", b"1" * 30, b'{"label": 1}', b"[" * 2000)


def damage_pictures(seed: int, count: int) -> Findings:
    """Decode damaged pictures."""

    def decode(number: int) -> str:
        content = damaged_picture(random.Random(f"{seed}/{number}"))
        name = f"picture-{number}"
        try:
            pixels, aspect_ratio = decode_image(partial(open_image_bytes, content), Path(name), SIZE)
        except DataError as error:
            return refused(error, name)
        assert pixels.shape == (3, 8, 8)
        assert aspect_ratio > 0
        return "read"

    with ignored_pillow_warnings(), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return try_each(decode, count)


def read_damaged_data_sets(seed: int, count: int) -> Findings:
    """Read odd and damaged image folders and shards."""
    folder = Path(tempfile.mkdtemp(prefix="shoestring-archives-"))

    def read(number: int) -> str:
        draw, place = random.Random(f"{seed}/{number}"), folder / str(number)
        place.mkdir()
        shards = draw.random() < 0.5
        (write_shards if shards else write_folder)(place, draw)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                data = load(
                    place, image_size=8, val_fraction=0.5, data_format="webdataset" if shards else "imagefolder",
                    on_corrupt=draw.choice(("error", "skip")),
                )  # fmt: skip
        except DataError as error:
            return refused(error, str(place))
        finally:
            shutil.rmtree(place)
        assert set(data.train.labels_N.tolist()) == set(range(len(data.classes)))
        assert len(data.val) > 0
        return "read"

    try:
        return try_each(read, count)
    finally:
        shutil.rmtree(folder)


def damaged_picture(draw: random.Random) -> bytes:
    """Return a picture in a random format with random damage; a few have none."""
    content = bytearray(_picture(draw.choice(FORMATS), draw.choice(MODES), draw.randrange(3), draw.randrange(9)))
    for _ in range(draw.choice((0, 1, 1, 2, 3, 8))):
        # half of all damage is near the start, where headers are
        place = draw.randrange(min(len(content), 64 if draw.random() < 0.5 else len(content)) or 1)
        match draw.randrange(6):
            case 0 | 1 | 2:
                content[place : place + 1] = bytes([draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))])
            case 3:
                del content[place : place + draw.randrange(1, 16)]
            case 4:
                content[place:place] = draw.randbytes(draw.randrange(1, 16))
            case 5:
                del content[place:]
        if not content:
            break
    return bytes(content)


@cache
def _picture(kind: str, mode: str, size: int, orientation: int) -> bytes:
    """Return a whole picture of at most 64 pixels a side; in the nearest mode that the format has."""
    side = (1, 17, 40)[size]
    pixels = np.random.default_rng(size).integers(0, 256, (side, max(1, side * 3 // 4), 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for chosen in (mode, "RGB"):
        file = io.BytesIO()
        try:
            Image.fromarray(pixels).convert(chosen).save(file, kind, exif=exif.tobytes())
        except (OSError, ValueError):
            continue
        return file.getvalue()
    raise AssertionError(f"Pillow can't write {kind}")


def write_folder(place: Path, draw: random.Random) -> None:
    """Write an image folder: splits or classes by name, sometimes nested, with damaged pictures, links and others."""
    usual = draw.choice((("cat", "dog"), ("train/cat", "train/dog", "val/cat", "val/dog")))
    odd = [f"{top}/{draw.choice(WORDS)}" for top in draw.sample((*WORDS, ""), draw.choice((0, 0, 1, 3)))]
    share = draw.choice((0.0, 0.05, 0.5))
    for folder in (*usual, *odd) if draw.random() < 0.7 else odd:
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            (place / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
            for number in range(draw.choice((0, 4, 4, 5, 6, 7))):
                _write_file(place / folder.lstrip("/") / f"{draw.choice(PREFIXES)}{number}.jpg", draw, share)


def _write_file(path: Path, draw: random.Random, odd_share: float) -> None:
    """Write a picture, or with the given probability something else; where there is something already, nothing."""
    if os.path.lexists(path):
        return
    match draw.randrange(4) if draw.random() < odd_share else None:
        case 0:
            path.symlink_to(draw.choice(("nowhere", path.name, "..", "/etc/passwd")))
        case 1:
            os.mkfifo(path)
        case 2:
            path.mkdir()
        case 3:
            path.write_bytes(damaged_picture(draw))
        case None:
            path.write_bytes(_picture("PNG", "RGB", 1, 0))


def write_shards(place: Path, draw: random.Random) -> None:
    """Write shards, some with damage, odd names, labels and members; sometimes a file of class names."""
    for name in draw.sample(draw.choice(SHARDS), draw.choice((1, 2, 2))):
        shard = place / f"{name}.tar"
        shard.parent.mkdir(exist_ok=True)
        with tarfile.open(shard, "w", format=draw.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT))) as tar:
            for number in range(draw.choice((0, 4, 8, 8, 8))):
                odd = draw.random() < 0.02
                key = draw.choice((f"{number}.x", f"../{number}", "/" + str(number), "")) if odd else str(number)
                picture = damaged_picture(draw) if draw.random() < 0.02 else _picture("PNG", "RGB", 1, 0)
                label = draw.choice(LABELS) if draw.random() < 0.02 else str(number % 2).encode()
                for suffix, content in ((".png", picture), (draw.choice((".cls", ".cls", ".json")), label)):
                    member = tarfile.TarInfo(key + suffix)
                    member.size = len(content)
                    if draw.random() < 0.01:
                        member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
                    tar.addfile(member, io.BytesIO(content))
        if draw.random() < 0.2:
            content = bytearray(shard.read_bytes())
            for _ in range(draw.randrange(1, 4)):
                content[draw.randrange(len(content)) // 512 * 512 + draw.randrange(160)] = draw.randrange(256)
            shard.write_bytes(content[: draw.choice((len(content), draw.randrange(len(content))))])
    if draw.random() < 0.2:
        lines = [draw.choice((b"cat", b"dog", b"\xff\xfec\0a\0t\0", "caf\xe9".encode(), b"")) for _ in range(3)]
        (place / "classes.txt").write_bytes(b"\n".join(lines))


CASES = {"pictures": Case(damage_pictures, 30_000), "archives": Case(read_damaged_data_sets, 500)}

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", CASES))
