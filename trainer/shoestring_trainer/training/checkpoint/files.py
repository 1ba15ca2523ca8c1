# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: one data object of parts laid end to end, and one manifest that hashes them. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from shoestring_trainer.training.errors import DataError

FORMAT = 1


@dataclass(frozen=True)
class Written:
    """Paths of a durable checkpoint, relative to the run's folder."""

    data: str
    manifest: str


def write_checkpoint(folder: Path, *, job: str, generation: int, step: int, parts: Mapping[str, bytes]) -> Written:
    """Write a checkpoint below `folder` and return once it would survive a power cut.

    The manifest is written last, so whoever sees a manifest sees whole data. Raises OSError if the disk refuses.
    """
    name = f"ckpt/step-{step:09d}"
    (folder / "ckpt").mkdir(exist_ok=True)
    offset, listed = 0, []
    for part, content in parts.items():
        listed.append({"name": part, "offset": offset, "bytes": len(content), "sha256": _sha256(content)})
        offset += len(content)
    whole = hashlib.sha256()
    for content in parts.values():
        whole.update(content)
    manifest = {
        "format": FORMAT, "job": job, "generation": generation, "step": step,
        "bytes": offset, "sha256": whole.hexdigest(), "parts": listed,
    }  # fmt: skip
    _write_durably(folder / f"{name}.data", *parts.values())
    _write_durably(folder / f"{name}.json", json.dumps(manifest).encode())
    return Written(f"{name}.data", f"{name}.json")


def read_checkpoint(data: Path, manifest: Path) -> dict[str, bytes]:
    """The parts of a checkpoint, each checked against its hash. Raises DataError that names the file and the remedy."""
    listed = _read_manifest(manifest)
    try:
        content = data.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read the checkpoint {data}: {error.strerror}; start from another checkpoint"
        ) from error
    parts = {}
    for part in listed:
        piece = content[part["offset"] : part["offset"] + part["bytes"]]
        if _sha256(piece) != part["sha256"]:
            raise DataError(
                f"the checkpoint {data} is damaged: {part['name']} does not match its hash in {manifest.name}; "
                "fetch it again or start from an older checkpoint"
            )
        parts[part["name"]] = piece
    return parts


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """safetensors bytes of named tensors, in a fixed layout."""
    packed: bytes = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
    return packed


def unpack_tensors(parts: Mapping[str, bytes], part: str, source: Path) -> dict[str, Tensor]:
    """The named tensors of one part. Raises DataError if the part is absent or no safetensors."""
    try:
        tensors: dict[str, Tensor] = load_tensors(_part(parts, part, source))
    except SafetensorError as error:
        raise DataError(f"{part} in the checkpoint {source} is not a safetensors file ({error})") from error
    return tensors


def unpack_json(parts: Mapping[str, bytes], part: str, source: Path) -> dict[str, Any]:
    """The JSON object of one part. Raises DataError if the part is absent or no JSON object."""
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
            f"the checkpoint {source} has no part {name}; it was not written by this trainer, or something was taken "
            "out of it: start from another checkpoint"
        )
    return parts[name]


def _read_manifest(path: Path) -> list[dict[str, Any]]:
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != FORMAT:
            raise DataError(f"{path} has format {manifest['format']}, this trainer reads {FORMAT}; update the trainer")
        parts = [{key: part[key] for key in ("name", "offset", "bytes", "sha256")} for part in manifest["parts"]]
        for part in parts:
            if not all(isinstance(part[key], int) and part[key] >= 0 for key in ("offset", "bytes")):
                raise ValueError(f"{part['name']} lies nowhere")
        return parts
    except OSError as error:
        raise DataError(f"cannot read the manifest {path}: {error.strerror}; start from another checkpoint") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is not a checkpoint manifest ({error!r}); start from another checkpoint") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_durably(path: Path, *contents: bytes) -> None:
    draft = path.with_name(path.name + ".tmp")
    with draft.open("wb") as file:
        for content in contents:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
