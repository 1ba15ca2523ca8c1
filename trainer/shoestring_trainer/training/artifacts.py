# SPDX-License-Identifier: Apache-2.0
"""What a finished job leaves its owner: a model that plain PyTorch loads, and the proof of its score."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import torch
from torch import Tensor, nn

from shoestring_trainer.training.evaluation import Scores
from shoestring_trainer.training.faults import TrainerError
from shoestring_trainer.training.lazy_compiler import restore_compiler
from shoestring_trainer.training.pictures import DataSet

HOW_TO_LOAD = (
    'import torch; model = torch.export.load("model.pt2").module(); '
    "logits = model(pictures)  # float32, N x C x H x W, 0 is black and 1 is white"
)


def make_artifacts(model: nn.Module, data: DataSet, scores: Scores, about: dict[str, Any]) -> dict[str, bytes]:
    """The further parts of a final checkpoint, by name. `about` describes the run for model.json."""
    channels, height, width = data.held_out.bytes_NCHW.shape[1:]
    card = {
        **about,
        "classes": data.classes,
        "input": {
            "shape": ["N", channels, height, width], "dtype": "float32", "range": [0.0, 1.0],
            "normalisation": {"inside_the_model": True, "mean": data.mean, "std": data.std},
        },
        "output": {"shape": ["N", len(data.classes)], "what": "logits"},
        "metrics": scores.metrics,
        "load": HOW_TO_LOAD,
    }  # fmt: skip
    predictions = {"predicted": scores.predictions_N.tolist(), "labels": data.held_out.labels_N.tolist()}
    return {
        "model.json": _json(card),
        "model.pt2": export_model(model, data),
        "split.json": _json(data.split),
        "predictions.json": _json(predictions),
    }


def export_model(model: nn.Module, data: DataSet) -> bytes:
    """The network as a torch.export archive: eval mode, fp32, CPU, any batch size.

    Raises TrainerError if the archive does not compute what `model` does.
    """
    restore_compiler()
    plain = copy.deepcopy(model).cpu().eval()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    sample_NCHW = _sample(data)
    with torch.no_grad():
        exported = torch.export.export(plain, (sample_NCHW,), dynamic_shapes=({0: torch.export.Dim("N", min=1)},))
        if not torch.allclose(exported.module()(sample_NCHW), plain(sample_NCHW), atol=1e-4, rtol=1e-4):
            raise TrainerError(
                "the exported model computes something else than the trained one; please report this recipe"
            )
    archive = io.BytesIO()
    torch.export.save(exported, archive)
    return archive.getvalue()


def _sample(data: DataSet) -> Tensor:
    return data.held_out.bytes_NCHW[:8].float() / data.white


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()
