# SPDX-License-Identifier: Apache-2.0
"""The artifacts of a finished job: exported models, the predictions behind its metrics, and the error analysis."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from torch import nn

from shoestring_trainer.training.data.dataset import ImageDataset
from shoestring_trainer.training.results.error_analysis import count_confusions, hardest_examples, render_page
from shoestring_trainer.training.results.evaluation import EvalResult
from shoestring_trainer.training.results.exports import export_program, pack_onnx, pack_program, pack_weights

HOW_TO_LOAD = (
    'import torch; model = torch.export.load("model.pt2").module(); '
    "logits = model(images)  # float32, N x C x H x W, 0 is black and 1 is white"
)

HOW_TO_LOAD_WEIGHTS = (
    "from safetensors.torch import load_file; net.load_state_dict(load_file('network.safetensors'))  # net: a new "
    "network of this architecture and number of classes; it takes images normalized by mean and std"
)


def build_artifacts(
    model: nn.Module, data: ImageDataset, eval_result: EvalResult, about: dict[str, Any], *, onnx: bool = False
) -> dict[str, bytes]:
    """Return the artifacts, further parts of a final checkpoint, by name. `about` describes the run for model.json.

    model.json lists the shapes of rectangular evaluation; the exports take the shape that it names as input.
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
        "metrics": eval_result.metrics,
        "load": HOW_TO_LOAD,
        "weights": HOW_TO_LOAD_WEIGHTS,
    }  # fmt: skip
    if data.val_batches:
        card["eval_shapes"] = sorted({tuple(uint8_NCHW.shape[2:]) for _, uint8_NCHW in data.val_batches})
    predictions = {
        "predicted": eval_result.predictions_N.tolist(), "labels": data.val.labels_N.tolist(),
        "losses": [round(loss, 6) for loss in eval_result.losses_N.tolist()],
    }  # fmt: skip
    counts_KK = count_confusions(data.val.labels_N, eval_result.predictions_N, len(data.classes))
    facts = {**eval_result.metrics, "validation images": len(data.val), "step": about["step"], "seed": about["seed"]}
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
        "worst.json": _json([asdict(example) for example in hardest_examples(data, eval_result)]),
        "mistakes.html": render_page(f"{about['recipe']}: what it gets wrong", data, eval_result, facts).encode(),
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
