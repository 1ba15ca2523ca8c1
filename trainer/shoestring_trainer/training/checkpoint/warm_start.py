# SPDX-License-Identifier: Apache-2.0
"""Warm start: a run initialized with the weights of another run, or of a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load
from shoestring_core.task import MAX_CHECKPOINT_BYTES, CheckpointFiles
from shoestring_core.wording.units import counted
from torch import Tensor, nn

from shoestring_trainer.terminal import say
from shoestring_trainer.training.checkpoint.files import read_checkpoint, unpack_tensors
from shoestring_trainer.training.data.confined_files import read_confined, require_confined
from shoestring_trainer.training.errors import DataError

WEIGHT_FILES = ("model.safetensors", "network.safetensors", "model/network.safetensors")
"""In a folder: the name of other libraries, and ours as `shoestring artifacts get` and a finished run write it."""
MAX_NAMED = 20


def warm_start(model: nn.Module, source: CheckpointFiles | Path) -> str:
    """Load the tensors of `source` whose name and shape match `model`; the log names the others.

    Names may be the model's, or the bare network's as its library has them. Returns a summary for the user.
    Raises DataError if nothing can be read there, if no weight fits, or if one is not finite.
    """
    tensors = _read(source)
    target = max((model, list(model.children())[-1]), key=lambda part: len(_fitting(tensors, part)))
    own, fitting = target.state_dict(), _fitting(tensors, target)
    if not any(name.endswith("weight") for name in fitting):
        raise DataError(
            f"no weight of {_place(source)} fits this model: {_difference(tensors, own)}; give the recipe and the "
            "parameters of the network that it came from, or other weights"
        )
    if broken := [name for name, tensor in fitting.items() if not torch.isfinite(tensor).all()]:
        raise DataError(f"{broken[0]} of {_place(source)} has numbers that are not finite; use other weights")
    if fresh := sorted(set(own) - set(fitting)):
        say(f"warm start: randomly initialized, as no tensor fits: {', '.join(fresh)}")
    target.load_state_dict(fitting, strict=False)
    randomly = f"; randomly initialized: {_first(fresh, MAX_NAMED)}" if fresh else ""
    return f"{len(fitting)} of {counted(len(own), 'tensor')} loaded{randomly}"


def _fitting(tensors: Mapping[str, Tensor], part: nn.Module) -> dict[str, Tensor]:
    own = part.state_dict()
    return {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}


def _read(source: CheckpointFiles | Path) -> dict[str, Tensor]:
    if isinstance(source, CheckpointFiles):
        return unpack_tensors(read_checkpoint(source.data, source.manifest), "model.safetensors", source.data)
    require_confined(source)
    if manifests := sorted(source.glob("ckpt/step-*.json")):
        data, manifest = manifests[-1].with_suffix(".data"), manifests[-1]
        return unpack_tensors(read_checkpoint(data, manifest, read_confined), "model.safetensors", data)
    file = next((file for name in WEIGHT_FILES if (file := source / name).is_file()), source)
    try:
        tensors: dict[str, Tensor] = load(read_confined(file, MAX_CHECKPOINT_BYTES))
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise anything
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"init: no weights can be read at {file} ({why}); give the folder of a run, a folder with "
            f"{WEIGHT_FILES[0]} or {WEIGHT_FILES[1]}, or a .safetensors file, on every machine"
        ) from error
    return tensors


def _place(source: CheckpointFiles | Path) -> Path:
    return source.data if isinstance(source, CheckpointFiles) else source


def _difference(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Return the weights whose shapes differ; names, where no name matches."""
    weights = sorted(name for name in theirs if name.endswith("weight"))
    differing = [
        f"{name} is {tuple(theirs[name].shape)} there and {tuple(own[name].shape)} here"
        for name in weights
        if name in own
    ]
    return _first(differing, 3) or f"it has {_first(weights, 3) or 'none'}, the model has {_first(sorted(own), 3)}"


def _first(names: list[str], count: int) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
