# SPDX-License-Identifier: Apache-2.0
"""Scoring on held-out pictures: each is scored once, on one rank, and the sums are exact on all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring_trainer.training.faults import UserError
from shoestring_trainer.training.gang import Gang
from shoestring_trainer.training.pictures import DataSet
from shoestring_trainer.training.precision import Precision

BATCH = 256
VIEWS = (1, 2, 6)


@dataclass(frozen=True)
class Scores:
    """accuracy and loss are means over all held-out pictures; predictions_N are the classes the model chose.

    accuracy_tta  of the classes chosen from several views of each picture; None if one view was asked for
    """

    accuracy: float
    loss: float
    predictions_N: Tensor
    accuracy_tta: float | None = None

    @property
    def metrics(self) -> dict[str, float]:
        several = {} if self.accuracy_tta is None else {"val/acc_tta": self.accuracy_tta}
        return {"val/acc": self.accuracy, "val/loss": self.loss, **several}


@torch.no_grad()
def evaluate(model: nn.Module, data: DataSet, gang: Gang, precision: Precision, views: int = 1) -> Scores:
    """Score `model`, with rank 0's buffers, on the held-out pictures. Leaves the model in training mode."""
    if views not in VIEWS:
        raise UserError(f"views must be one of {', '.join(map(str, VIEWS))}, not {views}")
    gang.adopt_buffers(model)
    model.eval()
    held_out, device = data.held_out, gang.device
    predictions_N = torch.zeros(len(held_out), dtype=torch.int64, device=device)
    loss, right_tta = torch.zeros(2, dtype=torch.float64, device=device).unbind()
    for batch in torch.arange(gang.rank, len(held_out), gang.world).split(BATCH):
        pictures_NCHW = held_out.bytes_NCHW[batch].to(device).float() / data.white
        with precision.autocast(device):
            pictures_NCHW = pictures_NCHW.contiguous(memory_format=torch.channels_last)
            logits_NK = model(pictures_NCHW)
            several_NK = logits_of_views(model, pictures_NCHW, logits_NK, views)
        labels_N = held_out.labels_N[batch].to(device)
        loss += F.cross_entropy(logits_NK.float(), labels_N, reduction="sum").double()
        right_tta += (several_NK.argmax(1) == labels_N).sum()
        predictions_N[batch.to(device)] = logits_NK.argmax(1)
    model.train()
    gang.sum(predictions_N)
    right = int((predictions_N.cpu() == held_out.labels_N).sum())
    accuracy_tta = gang.sum(right_tta).item() / len(held_out) if views > 1 else None
    return Scores(right / len(held_out), gang.sum(loss).item() / len(held_out), predictions_N.cpu(), accuracy_tta)


def logits_of_views(model: nn.Module, pictures_NCHW: Tensor, logits_NK: Tensor, views: int) -> Tensor:
    """The mean of the logits of `views` views of each picture, given those of the first, the picture as it is.

    2: and its mirror image. 6: both also shifted by one pixel, up-left and down-right, which count half together.
    Source: airbench94.
    """
    if views == 1:
        return logits_NK
    own_NK: Tensor = (logits_NK + model(pictures_NCHW.flip(3))) / 2
    if views == 2:
        return own_NK
    padded_NCHW = F.pad(pictures_NCHW, (1, 1, 1, 1), mode="reflect")
    shifted = [padded_NCHW[:, :, :-2, :-2], padded_NCHW[:, :, 2:, 2:]]
    shifted_NK = torch.stack([model(view) + model(view.flip(3)) for view in shifted]).mean(0) / 2
    return (own_NK + shifted_NK) / 2
