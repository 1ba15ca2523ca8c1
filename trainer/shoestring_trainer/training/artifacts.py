# SPDX-License-Identifier: Apache-2.0
"""What a finished job leaves its owner: a model that other programs load, the proof of its score, and its mistakes."""

from __future__ import annotations

import copy
import io
import json
import math
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from shoestring_trainer.training.evaluation import Scores
from shoestring_trainer.training.faults import TrainerError
from shoestring_trainer.training.lazy_compiler import restore_compiler
from shoestring_trainer.training.mistakes import count_confusions, draw_page, find_worst
from shoestring_trainer.training.pictures import DataSet

HOW_TO_LOAD = (
    'import torch; model = torch.export.load("model.pt2").module(); '
    "logits = model(pictures)  # float32, N x C x H x W, 0 is black and 1 is white"
)

HOW_TO_LOAD_WEIGHTS = (
    "from safetensors.torch import load_file; net.load_state_dict(load_file('network.safetensors'))  # net: a fresh "
    "network of this architecture, with so many classes; it takes pictures normalised by mean and std"
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
        "weights": HOW_TO_LOAD_WEIGHTS,
    }  # fmt: skip
    predictions = {
        "predicted": scores.predictions_N.tolist(), "labels": data.held_out.labels_N.tolist(),
        "losses": [round(loss, 6) for loss in scores.losses_N.tolist()],
    }  # fmt: skip
    counts_KK = count_confusions(data.held_out.labels_N, scores.predictions_N, len(data.classes))
    facts = {**scores.metrics, "held-out pictures": len(data.held_out), "step": about["step"], "seed": about["seed"]}
    return {
        "model.json": _json(card),
        "model.pt2": export_model(model, data),
        "network.safetensors": export_weights(model),
        "split.json": _json(data.split),
        "predictions.json": _json(predictions),
        "confusion.json": _json({"classes": data.classes, "counts": counts_KK.tolist()}),
        "worst.json": _json([asdict(mistake) for mistake in find_worst(data, scores)]),
        "mistakes.html": draw_page(f"{about['recipe']}: what it gets wrong", data, scores, facts).encode(),
    }


def export_weights(model: nn.Module) -> bytes:
    """The bare network's tensors, without the normalisation before it, under the names that its library gives them."""
    network = list(model.children())[-1]
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content: bytes = save_tensors(tensors, metadata={"format": "pt"})
    return content


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
    return json.dumps(_finite(value), indent=1, allow_nan=False).encode()


def _finite(value: object) -> object:
    """JSON has no NaN and no infinities: null instead."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
