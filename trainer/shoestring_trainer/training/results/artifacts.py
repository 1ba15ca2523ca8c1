# SPDX-License-Identifier: Apache-2.0
"""What a finished job leaves its owner: a model that other programs load, the proof of its score, and its mistakes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from torch import nn

from shoestring_trainer.training.data.dataset import ImageDataset
from shoestring_trainer.training.results.error_analysis import count_confusions, draw_page, find_worst
from shoestring_trainer.training.results.evaluation import Scores
from shoestring_trainer.training.results.exports import export_program, pack_onnx, pack_program, pack_weights

HOW_TO_LOAD = (
    'import torch; model = torch.export.load("model.pt2").module(); '
    "logits = model(images)  # float32, N x C x H x W, 0 is black and 1 is white"
)

HOW_TO_LOAD_WEIGHTS = (
    "from safetensors.torch import load_file; net.load_state_dict(load_file('network.safetensors'))  # net: a fresh "
    "network of this architecture, with so many classes; it takes images normalised by mean and std"
)


def make_artifacts(
    model: nn.Module, data: ImageDataset, scores: Scores, about: dict[str, Any], *, onnx: bool = False
) -> dict[str, bytes]:
    """The further parts of a final checkpoint, by name. `about` describes the run for model.json.

    Images that were scored in batches of like shape are in model.json as such: the exports take the shape it names.
    """
    channels, height, width = data.val.images_NCHW.shape[1:]
    card = {
        **about,
        "classes": data.classes,
        "input": {
            "shape": ["N", channels, height, width], "dtype": "float32", "range": [0.0, 1.0],
            "zoom": about.get("params", {}).get("eval_resize_factor", 1.0),
            "normalisation": {"inside_the_model": True, "mean": data.mean, "std": data.std},
        },
        "output": {"shape": ["N", len(data.classes)], "what": "logits"},
        "metrics": scores.metrics,
        "load": HOW_TO_LOAD,
        "weights": HOW_TO_LOAD_WEIGHTS,
    }  # fmt: skip
    if data.val_batches:
        card["scored_in"] = sorted({tuple(uint8_NCHW.shape[2:]) for _, uint8_NCHW in data.val_batches})
    predictions = {
        "predicted": scores.predictions_N.tolist(), "labels": data.val.labels_N.tolist(),
        "losses": [round(loss, 6) for loss in scores.losses_N.tolist()],
    }  # fmt: skip
    counts_KK = count_confusions(data.val.labels_N, scores.predictions_N, len(data.classes))
    facts = {**scores.metrics, "validation images": len(data.val), "step": about["step"], "seed": about["seed"]}
    sample_NCHW = data.val.images_NCHW[:8].float() / data.max_value
    program = export_program(model, sample_NCHW)
    return {
        "model.json": _json(card),
        "model.pt2": pack_program(program, _json(card)),
        **({"model.onnx": pack_onnx(program, _json(card), sample_NCHW)} if onnx else {}),
        "network.safetensors": pack_weights(model),
        "split.json": _json(data.split),
        "predictions.json": _json(predictions),
        "confusion.json": _json({"classes": data.classes, "counts": counts_KK.tolist()}),
        "worst.json": _json([asdict(mistake) for mistake in find_worst(data, scores)]),
        "mistakes.html": draw_page(f"{about['recipe']}: what it gets wrong", data, scores, facts).encode(),
    }


def _json(value: object) -> bytes:
    return json.dumps(_finite(value), indent=1, allow_nan=False).encode()


def _finite(value: object) -> object:
    """JSON has no NaN and no infinities: null instead."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
