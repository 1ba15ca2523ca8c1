# SPDX-License-Identifier: Apache-2.0
"""Read the samples of one WebDataset shard: each image's position in the tar file, and its label."""

from __future__ import annotations

import codecs
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import TarInfo
from typing import BinaryIO, cast

from shoestring_core.image_folders import IMAGE_EXTENSIONS
from shoestring_core.wording.units import counted

from shoestring_trainer.training.data.confined_files import open_confined
from shoestring_trainer.training.data.image_files import MAX_FILE_BYTES
from shoestring_trainer.training.data.image_index import validate_utf8
from shoestring_trainer.training.errors import DataError, first_line

LABEL_KEYS = ("label", "cls", "class")
"""Keys of a JSON member that can hold the label, in this order."""
MAX_LABEL_BYTES = 1 << 20
MAX_PADDING_BYTES = 64 << 20
"""After the end mark; tar itself pads to 10 KiB."""
_MEMBER_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)

Label = int | str


@dataclass
class Sample:
    """The members of one key. `problems` say why the sample is invalid.

    dotted  a member that is an image by the end of its name, but whose key ends at an earlier dot
    """

    image: TarInfo | None = None
    label: Label | None = None
    dotted: str | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def problem(self) -> str:
        """Why the sample is invalid."""
        if self.problems:
            return self.problems[0]
        if self.image:
            return "it has no label (.cls or .json)"
        if self.dotted:
            return (
                f"a key ends at the first dot, so {self.dotted} is no image of it; rename it, without dots in the key"
            )
        return "it has no image"


def read_samples(shard: Path) -> dict[str, Sample]:
    """Return a shard's samples by key. Raises DataError if the tar file is damaged."""
    samples: dict[str, Sample] = {}
    for member, content in _read_members(shard):
        _add_member(samples, member, content)
    return samples


def _read_members(shard: Path) -> Iterator[tuple[TarInfo, bytes]]:
    """Yield the members of a shard up to its end mark; the content only of those that hold a label."""
    try:
        file = open_confined(shard)
    except OSError as error:
        raise DataError(f"cannot read the shard {shard}: {error.strerror}; fetch or create it again") from error
    try:
        with file, tarfile.open(fileobj=cast("BinaryIO", _BoundedReads(file)), mode="r:", errorlevel=2) as tar:
            size = os.fstat(file.fileno()).st_size
            for member in tar:
                if member.offset_data + member.size > size and member.isreg():
                    raise tarfile.ReadError(f"{member.name} is truncated")
                readable = _is_label(member.name) and member.isreg() and member.size <= MAX_LABEL_BYTES
                reader = tar.extractfile(member) if readable else None
                yield member, reader.read() if reader else b""
            _require_end(file, tar.offset, size)
    except Exception as error:  # a damaged archive can raise anything
        raise DataError(
            f"{shard} isn't a complete, uncompressed tar file ({first_line(error)}); fetch or create it again"
        ) from error


def _require_end(file: BinaryIO, end: int, size: int) -> None:
    """Raise ReadError unless an end mark lies at byte `end`, and only padding follows it."""
    file.seek(end)
    rest = file.read(2 * tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise tarfile.ReadError(f"neither an end mark nor a member at byte {end}")
    if size - end > MAX_PADDING_BYTES:
        raise tarfile.ReadError(f"{counted(size - end, 'byte')} follow from its end mark at byte {end} on")
    while rest := file.read(1 << 20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError(f"data after its end mark at byte {end}: were tar files concatenated?")


class _BoundedReads:
    """A file as tarfile reads it: what a damaged header says of its own length doesn't fill the memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_LABEL_BYTES + tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"a header of {size:,} bytes at byte {self._file.tell()}")
        return self._file.read(size)


def _is_label(name: str) -> bool:
    return name.lower().endswith((".cls", ".json"))


def _add_member(samples: dict[str, Sample], member: TarInfo, content: bytes) -> None:
    """Add a member to its sample: the name up to its first dot is the key, the rest the extension."""
    match = _MEMBER_NAME.fullmatch(member.name)
    if not match or member.isdir():
        return
    sample, extension = samples.setdefault(match[1], Sample()), match[2].lower()
    if f".{extension}" in IMAGE_EXTENSIONS:
        validate_utf8(Path(member.name))
        if sample.image:
            sample.problems.append("it has two images")
        elif not member.isreg() or member.issparse():
            sample.problems.append(f"{member.name} is a link or not a regular file")
        elif not 0 < member.size <= MAX_FILE_BYTES:
            sample.problems.append(f"{member.name} has {member.size} bytes")
        sample.image = member
    elif Path(member.name).suffix.lower() in IMAGE_EXTENSIONS:
        sample.dotted = member.name
    elif extension in ("cls", "json"):
        try:
            label = _parse_label(content, extension)
        except ValueError as error:
            sample.problems.append(f"{member.name} holds no label ({error})")
            return
        if label is not None and sample.label is not None and label != sample.label:
            sample.problems.append(f"it has two labels, {sample.label!r} and {label!r}")
        sample.label = label if sample.label is None else sample.label


def decode_text(content: bytes) -> str:
    """Return UTF-8 text without a byte order mark. Raises ValueError, also for UTF-16, by its byte order mark."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is UTF-16; save it as UTF-8")
    return content.decode("utf-8-sig")


def _parse_label(content: bytes, extension: str) -> Label | None:
    """Return an integer or a string; None for JSON without a label. Raises ValueError."""
    if extension == "cls":
        value: object = decode_text(content).strip()
    else:
        try:
            value = json.loads(content)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if isinstance(value, dict):
            value = next((value[key] for key in LABEL_KEYS if key in value), None)
            if value is None:
                return None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return value
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 200:
        raise ValueError("neither an integer nor a string")
    return int(value) if re.fullmatch(r"[+-]?[0-9]{1,18}", value.strip()) else value.strip()
