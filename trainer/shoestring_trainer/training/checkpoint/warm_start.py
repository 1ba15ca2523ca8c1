# SPDX-License-Identifier: Apache-2.0
"""Warm start: a run begins with another one's weights, or with those of any file of safetensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from shoestring_trainer.training.checkpoint.files import read_checkpoint, unpack_tensors
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.task import CheckpointFiles

FILES = ("model.safetensors", "network.safetensors", "model/network.safetensors")
"""What a folder may hold: other libraries' name, and ours as `shoestring artifacts get` and a finished run leave it."""
NAMED = 20


def warm_start(model: nn.Module, source: CheckpointFiles | Path) -> str:
    """Give `model` the tensors of `source` that agree in name and shape; the rest stay fresh and are named in the log.

    Names may be the whole model's, or the bare network's as its library has them. Returns a sentence about it.
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
        raise DataError(f"{broken[0]} of {_place(source)} has numbers that are not finite; start with other weights")
    if fresh := sorted(set(own) - set(fitting)):
        sys.stdout.write(f"warm start: left fresh, for want of a fitting tensor: {', '.join(fresh)}\n")
    target.load_state_dict(fitting, strict=False)
    return f"{len(fitting)} of {len(own)} tensors are given{'; fresh: ' if fresh else ''}{_first(fresh, NAMED)}"


def _fitting(tensors: Mapping[str, Tensor], part: nn.Module) -> dict[str, Tensor]:
    own = part.state_dict()
    return {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}


def _read(source: CheckpointFiles | Path) -> dict[str, Tensor]:
    if isinstance(source, CheckpointFiles):
        return unpack_tensors(read_checkpoint(source.data, source.manifest), "model.safetensors", source.data)
    if manifests := sorted(source.glob("ckpt/step-*.json")):
        return _read(CheckpointFiles(manifests[-1].with_suffix(".data"), manifests[-1]))
    file = next((file for name in FILES if (file := source / name).is_file()), source)
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"init: no weights can be read at {file} ({error}); give the folder of a run, a folder with "
            f"{FILES[0]} or {FILES[1]}, or a .safetensors file, on every machine"
        ) from error
    return tensors


def _place(source: CheckpointFiles | Path) -> Path:
    return source.data if isinstance(source, CheckpointFiles) else source


def _difference(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Weights of like name and other shape; names, where none are alike."""
    weights = sorted(name for name in theirs if name.endswith("weight"))
    apart = [
        f"{name} is {tuple(theirs[name].shape)} there and {tuple(own[name].shape)} here"
        for name in weights
        if name in own
    ]
    return _first(apart, 3) or f"it has {_first(weights, 3) or 'none'}, the model has {_first(sorted(own), 3)}"


def _first(words: list[str], most: int) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
