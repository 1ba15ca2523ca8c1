# SPDX-License-Identifier: Apache-2.0
"""Scoring on held-out pictures: each is scored once, on one rank, and the sums are exact on all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring_trainer.training.gang import Gang
from shoestring_trainer.training.pictures import DataSet
from shoestring_trainer.training.precision import Precision

BATCH = 256


@dataclass(frozen=True)
class Scores:
    """accuracy and loss are means over all held-out pictures; predictions_N are the classes the model chose."""

    accuracy: float
    loss: float
    predictions_N: Tensor

    @property
    def metrics(self) -> dict[str, float]:
        return {"val/acc": self.accuracy, "val/loss": self.loss}


@torch.no_grad()
def evaluate(model: nn.Module, data: DataSet, gang: Gang, precision: Precision) -> Scores:
    """Score `model`, with rank 0's buffers, on the held-out pictures. Leaves the model in training mode."""
    gang.adopt_buffers(model)
    model.eval()
    held_out, device = data.held_out, gang.device
    predictions_N = torch.zeros(len(held_out), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for batch in torch.arange(gang.rank, len(held_out), gang.world).split(BATCH):
        pictures_NCHW = held_out.bytes_NCHW[batch].to(device).float() / data.white
        with precision.autocast(device):
            logits_NK = model(pictures_NCHW.contiguous(memory_format=torch.channels_last))
        loss += F.cross_entropy(logits_NK.float(), held_out.labels_N[batch].to(device), reduction="sum").double()
        predictions_N[batch.to(device)] = logits_NK.argmax(1)
    model.train()
    gang.sum(predictions_N)
    right = int((predictions_N.cpu() == held_out.labels_N).sum())
    return Scores(right / len(held_out), gang.sum(loss).item() / len(held_out), predictions_N.cpu())
