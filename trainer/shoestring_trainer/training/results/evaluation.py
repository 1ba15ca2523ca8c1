# SPDX-License-Identifier: Apache-2.0
"""Evaluation on validation images: each is scored once, on one rank, and the sums are exact on all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring_trainer.training.data.dataset import ImageDataset
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.precision import Precision

BATCH = 256
VIEWS = (1, 2, 6)
TOP = 5


@dataclass(frozen=True)
class Scores:
    """accuracy and loss are means over all validation images.

    predictions_N   the classes the model chose
    losses_N        float64, of each image
    seconds         that evaluation took
    accuracy_tta    of the classes chosen from several views of each image; None if one view was asked for
    accuracy_top5   share whose class is among the five likeliest; None if there are no more classes than those
    """

    accuracy: float
    loss: float
    predictions_N: Tensor
    losses_N: Tensor
    seconds: float
    accuracy_tta: float | None = None
    accuracy_top5: float | None = None

    @property
    def metrics(self) -> dict[str, float]:
        tta = {} if self.accuracy_tta is None else {"val/acc_tta": self.accuracy_tta}
        top5 = {} if self.accuracy_top5 is None else {"val/acc_top5": self.accuracy_top5}
        return {"val/acc": self.accuracy, "val/loss": self.loss, **top5, **tta}


@torch.no_grad()
def evaluate(
    model: nn.Module, data: ImageDataset, distributed: DistributedContext, precision: Precision, views: int = 1
) -> Scores:
    """Score `model`, with rank 0's buffers, on the validation images. Leaves the model in training mode."""
    if views not in VIEWS:
        raise UserError(f"views must be one of {', '.join(map(str, VIEWS))}, not {views}")
    began = monotonic()
    distributed.broadcast_buffers(model)
    model.eval()
    val, device = data.val, distributed.device
    predictions_N = torch.zeros(len(val), dtype=torch.int64, device=device)
    losses_N = torch.zeros(len(val), dtype=torch.float64, device=device)
    right_top5, right_tta = torch.zeros(2, dtype=torch.int64, device=device).unbind()
    for batch, uint8_NCHW in _batches(data, distributed):
        images_NCHW = uint8_NCHW.to(device).float() / data.max_value
        with precision.autocast(device):
            images_NCHW = images_NCHW.contiguous(memory_format=torch.channels_last)
            logits_NK = model(images_NCHW)
            several_NK = logits_of_views(model, images_NCHW, logits_NK, views)
        labels_N = val.labels_N[batch].to(device)
        own = batch.to(device)
        predictions_N[own] = logits_NK.argmax(1)
        losses_N[own] = F.cross_entropy(logits_NK.float(), labels_N, reduction="none").double()
        right_tta += (several_NK.argmax(1) == labels_N).sum()
        if len(data.classes) > TOP:
            right_top5 += (logits_NK.topk(TOP).indices == labels_N[:, None]).sum()
    model.train()
    predictions_N, losses_N = distributed.all_reduce(predictions_N).cpu(), distributed.all_reduce(losses_N).cpu()
    right = int((predictions_N == val.labels_N).sum())
    return Scores(
        accuracy=right / len(val),
        loss=losses_N.mean().item(),
        predictions_N=predictions_N,
        losses_N=losses_N,
        seconds=monotonic() - began,
        accuracy_tta=distributed.all_reduce(right_tta).item() / len(val) if views > 1 else None,
        accuracy_top5=distributed.all_reduce(right_top5).item() / len(val) if len(data.classes) > TOP else None,
    )


def _batches(data: ImageDataset, distributed: DistributedContext) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's validation images: which they are, and their bytes. Ranks share each batch of like shape."""
    for batch, uint8_NCHW in data.val_batches:
        if distributed.rank < len(batch):
            yield (
                batch[distributed.rank :: distributed.world_size],
                uint8_NCHW[distributed.rank :: distributed.world_size],
            )
    if not data.val_batches:
        for batch in torch.arange(distributed.rank, len(data.val), distributed.world_size).split(BATCH):
            yield batch, data.val.images_NCHW[batch]


def logits_of_views(model: nn.Module, images_NCHW: Tensor, logits_NK: Tensor, views: int) -> Tensor:
    """The mean of the logits of `views` views of each image, given those of the first, the image as it is.

    2: and its mirror image. 6: both also shifted by one pixel, up-left and down-right, which count half together.
    Source: airbench94.
    """
    if views == 1:
        return logits_NK
    own_NK: Tensor = (logits_NK + model(images_NCHW.flip(3))) / 2
    if views == 2:
        return own_NK
    padded_NCHW = F.pad(images_NCHW, (1, 1, 1, 1), mode="reflect")
    shifted = [padded_NCHW[:, :, :-2, :-2], padded_NCHW[:, :, 2:, 2:]]
    shifted_NK = torch.stack([model(view) + model(view.flip(3)) for view in shifted]).mean(0) / 2
    return (own_NK + shifted_NK) / 2
