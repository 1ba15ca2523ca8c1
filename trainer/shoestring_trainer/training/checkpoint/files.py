# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: a data file of concatenated parts, and a manifest with their hashes. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from shoestring_core.regular_files import MAX_TEXT_BYTES, open_regular, read_regular
from shoestring_core.task import MAX_CHECKPOINT_BYTES
from torch import Tensor

from shoestring_trainer.training.errors import DataError

FORMAT = 1


class Read(Protocol):
    def __call__(self, path: Path, at_most: int, /) -> bytes:
        """Return a file's content. Raises OSError, also if it has more bytes than `at_most`."""


def write_checkpoint(
    folder: Path, *, job: str, generation: int, step: int, parts: Mapping[str, bytes]
) -> tuple[str, str]:
    """Write a checkpoint below `folder` and return once it would survive a power failure.

    Returns the paths of data and manifest, relative to `folder`. The manifest is written last, so where there is a
    manifest the data is complete. Raises OSError if the disk refuses.
    """
    name = f"ckpt/step-{step:09d}"
    (folder / "ckpt").mkdir(exist_ok=True)
    offset, entries = 0, []
    for part, content in parts.items():
        entries.append({"name": part, "offset": offset, "bytes": len(content), "sha256": _sha256(content)})
        offset += len(content)
    digest = hashlib.sha256()
    for content in parts.values():
        digest.update(content)
    manifest = {
        "format": FORMAT, "job": job, "generation": generation, "step": step,
        "bytes": offset, "sha256": digest.hexdigest(), "parts": entries,
    }  # fmt: skip
    _write_durably(folder / f"{name}.data", *parts.values())
    _write_durably(folder / f"{name}.json", json.dumps(manifest).encode())
    return f"{name}.data", f"{name}.json"


def list_checkpoint_files(folder: Path) -> list[str]:
    """Return the files of the complete checkpoints below `folder`, oldest first, as `write_checkpoint` returns them."""
    manifests = sorted(folder.glob("ckpt/step-*.json"))
    return [f"ckpt/{path.with_suffix(suffix).name}" for path in manifests for suffix in (".json", ".data")]


def read_checkpoint(data: Path, manifest: Path, read: Read = read_regular) -> dict[str, bytes]:
    """Return the parts of a checkpoint, with verified hashes. Raises DataError that names the file and the remedy."""
    entries = _read_manifest(manifest, read)
    end = max((part["offset"] + part["bytes"] for part in entries), default=0)
    try:
        content = read(data, min(end, MAX_CHECKPOINT_BYTES)) if entries else b""
    except OSError as error:
        raise DataError(
            f"cannot read the checkpoint {data}: {error.strerror}; start from another checkpoint"
        ) from error
    parts = {}
    for part in entries:
        piece = content[part["offset"] : part["offset"] + part["bytes"]]
        if _sha256(piece) != part["sha256"]:
            raise DataError(
                f"the checkpoint {data} is damaged: {part['name']} does not match its hash in {manifest.name}; "
                "fetch it again or start from an older checkpoint"
            )
        parts[part["name"]] = piece
    return parts


FILE_LIST_PART = "files.json.gz"
"""The part with the list of the data's files, see data/file_list.py."""


def read_part(data: Path, manifest: Path, name: str) -> bytes | None:
    """Return one part of a checkpoint, with its hash verified; None if there is none. Raises DataError as above."""
    entry = next((part for part in _read_manifest(manifest, read_regular) if part["name"] == name), None)
    if entry is None:
        return None
    try:
        with open_regular(data) as file:
            file.seek(entry["offset"])
            piece = file.read(entry["bytes"])
    except OSError as error:
        raise DataError(f"cannot read the checkpoint {data}: {error.strerror}") from error
    if _sha256(piece) != entry["sha256"]:
        raise DataError(f"the checkpoint {data} is damaged: {name} does not match its hash in {manifest.name}")
    return piece


def read_step(manifest: Path) -> int:
    """Return after which step a checkpoint was written. Raises DataError as above."""
    with _naming(manifest):
        step: Any = json.loads(read_regular(manifest))["step"]
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"its step is {step!r}")
        return step


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return named tensors in safetensors format."""
    packed: bytes = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
    return packed


def unpack_tensors(parts: Mapping[str, bytes], part: str, source: Path) -> dict[str, Tensor]:
    """Return the named tensors of a part. Raises DataError if the part is missing or not in safetensors format."""
    try:
        tensors: dict[str, Tensor] = load_tensors(_part(parts, part, source))
    except SafetensorError as error:
        raise DataError(f"{part} in the checkpoint {source} is not a safetensors file ({error})") from error
    return tensors


def unpack_json(parts: Mapping[str, bytes], part: str, source: Path) -> dict[str, Any]:
    """Return the JSON object of a part. Raises DataError if the part is missing or no JSON object."""
    try:
        value = json.loads(_part(parts, part, source))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{part} in the checkpoint {source} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{part} in the checkpoint {source} is not a JSON object")
    return value


def _part(parts: Mapping[str, bytes], name: str, source: Path) -> bytes:
    if name not in parts:
        raise DataError(
            f"the checkpoint {source} has no part {name}; it was not written by this trainer, or a part was "
            "removed: start from another checkpoint"
        )
    return parts[name]


def _read_manifest(path: Path, read: Read) -> list[dict[str, Any]]:
    with _naming(path):
        manifest = json.loads(read(path, MAX_TEXT_BYTES))
        if manifest["format"] != FORMAT:
            raise DataError(f"{path} has format {manifest['format']}, this trainer reads {FORMAT}; update the trainer")
        parts = [{key: part[key] for key in ("name", "offset", "bytes", "sha256")} for part in manifest["parts"]]
        for part in parts:
            if not all(isinstance(part[key], int) and part[key] >= 0 for key in ("offset", "bytes")):
                raise ValueError(f"{part['name']} has no valid offset and length")
        return parts


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a manifest into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read the manifest {path}: {error.strerror}; start from another checkpoint") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is not a checkpoint manifest ({error!r}); start from another checkpoint") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_durably(path: Path, *contents: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        for content in contents:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
