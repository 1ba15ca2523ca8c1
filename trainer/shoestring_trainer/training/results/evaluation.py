# SPDX-License-Identifier: Apache-2.0
"""Evaluation on the validation images: each is evaluated once, on one rank, and the sums are exact on all."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring_trainer.training.data.dataset import ImageDataset
from shoestring_trainer.training.data.stalls import InputStalls
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.models.input_errors import name_input_errors
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.step_results import LAG
from shoestring_trainer.training.stop_listener import StopOrdered
from shoestring_trainer.training.upload import Download

BATCH_SIZE = 256
TTA_VIEWS = (1, 2, 6)
TOP_K = 5


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation; accuracy and loss are means over all validation images.

    predictions_N   predicted classes
    losses_N        float64, per image
    seconds         duration of the evaluation
    batches         in which it was done, on the rank that has the most
    accuracy_tta    with test-time augmentation; None for one view
    accuracy_top5   None with five classes or fewer
    """

    accuracy: float
    loss: float
    predictions_N: Tensor
    losses_N: Tensor
    seconds: float
    accuracy_tta: float | None = None
    accuracy_top5: float | None = None
    batches: int = 1

    @property
    def metrics(self) -> dict[str, float]:
        tta = {} if self.accuracy_tta is None else {"val/acc_tta": self.accuracy_tta}
        top5 = {} if self.accuracy_top5 is None else {"val/acc_top5": self.accuracy_top5}
        return {"val/acc": self.accuracy, "val/loss": self.loss, **top5, **tta}


@torch.no_grad()
def evaluate(
    model: nn.Module, data: ImageDataset, distributed: DistributedContext, precision: Precision, views: int = 1
) -> EvalResult:
    """Evaluate `model`, with rank 0's buffers, on the validation images. Leaves the model in training mode.

    Raises StopOrdered, before the same batch on all ranks, if one of them is asked to stop meanwhile: it may take
    minutes. They tell each other with each batch, and read it as late as the results of steps.
    """
    if views not in TTA_VIEWS:
        raise UserError(f"tta_views must be one of {', '.join(map(str, TTA_VIEWS))}, not {views}")
    began = monotonic()
    if data.feed:
        data.feed.before_evaluation()
    distributed.broadcast_buffers(model)
    model.eval()
    val, device = data.val, distributed.device
    predictions_N = torch.zeros(len(val), dtype=torch.int64, device=device)
    losses_N = torch.zeros(len(val), dtype=torch.float64, device=device)
    correct_top5, correct_tta = torch.zeros(2, dtype=torch.int64, device=device).unbind()
    rounds, batches = _rounds(data, distributed.world_size), _batches(data, distributed)
    requests: deque[Download] = deque()
    for _ in range(rounds):
        requested = torch.full((1,), float(distributed.stop_requested()), device=device)
        requests.append(Download(distributed.all_reduce_async(requested).sums()))
        if len(requests) > LAG[device.type] and any(requests.popleft().read()):
            raise StopOrdered
        if (loaded := next(batches, None)) is None:
            continue  # the ranks before this one have one more
        batch, uint8_NCHW = loaded
        images_NCHW = uint8_NCHW.to(device).float() / data.max_value
        with precision.autocast(device), name_input_errors(images_NCHW):
            images_NCHW = precision.cast(images_NCHW).contiguous(memory_format=torch.channels_last)
            logits_NK = model(images_NCHW)
            tta_NK = tta_logits(model, images_NCHW, logits_NK, views)
        labels_N = val.labels_N[batch].to(device)
        indices_N = batch.to(device)
        predictions_N[indices_N] = logits_NK.argmax(1)
        losses_N[indices_N] = F.cross_entropy(logits_NK.float(), labels_N, reduction="none").double()
        correct_tta += (tta_NK.argmax(1) == labels_N).sum()
        if len(data.classes) > TOP_K:
            correct_top5 += (logits_NK.topk(TOP_K).indices == labels_N[:, None]).sum()
    model.train()
    if data.feed:
        data.feed.after_evaluation()
    predictions_N, losses_N = distributed.all_reduce(predictions_N).cpu(), distributed.all_reduce(losses_N).cpu()
    correct = int((predictions_N == val.labels_N).sum())
    return EvalResult(
        accuracy=correct / len(val),
        loss=losses_N.mean().item(),
        predictions_N=predictions_N,
        losses_N=losses_N,
        seconds=monotonic() - began,
        accuracy_tta=distributed.all_reduce(correct_tta).item() / len(val) if views > 1 else None,
        accuracy_top5=distributed.all_reduce(correct_top5).item() / len(val) if len(data.classes) > TOP_K else None,
        batches=rounds,
    )


def _rounds(data: ImageDataset, world_size: int) -> int:
    """Return how many batches rank 0 has: as many as any rank."""
    return len(data.val_batches) or math.ceil(len(range(0, len(data.val), world_size)) / BATCH_SIZE)


def _batches(data: ImageDataset, distributed: DistributedContext) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this rank's validation images: indices and pixels. Ranks share each batch of images of one shape."""
    rank, world_size = distributed.rank, distributed.world_size
    batches = [
        (batch[rank::world_size], images_NCHW, torch.arange(rank, len(batch), world_size))
        for batch, images_NCHW in data.val_batches
        if rank < len(batch)
    ]
    if not data.val_batches:
        own = torch.arange(rank, len(data.val), world_size).split(BATCH_SIZE)
        batches = [(batch, data.val.images_NCHW, batch) for batch in own if len(batch)]
    lazy = [(images_NCHW, places) for _, images_NCHW, places in batches if not isinstance(images_NCHW, Tensor)]
    stream, stalls = lazy[0][0].stream(lazy) if lazy else None, InputStalls()
    for batch, images_NCHW, places in batches:
        yield batch, stream.take(len(batch), distributed.device, stalls) if stream else images_NCHW[places]


def tta_logits(model: nn.Module, images_NCHW: Tensor, logits_NK: Tensor, views: int) -> Tensor:
    """Return the mean logits over views of each image (test-time augmentation), given those of the image itself.

    2: also its mirror image. 6: both also shifted by one pixel, up-left and down-right; the shifted ones together
    have half of the weight.
    Source: airbench94.
    """
    if views == 1:
        return logits_NK
    unshifted_NK: Tensor = (logits_NK + model(images_NCHW.flip(3))) / 2
    if views == 2:
        return unshifted_NK
    padded_NCHW = F.pad(images_NCHW, (1, 1, 1, 1), mode="reflect")
    shifted = [padded_NCHW[:, :, :-2, :-2], padded_NCHW[:, :, 2:, 2:]]
    shifted_NK = torch.stack([model(view) + model(view.flip(3)) for view in shifted]).mean(0) / 2
    return (unshifted_NK + shifted_NK) / 2
