# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of recipe parameters: every name a recipe may use, what it means, and its neutral value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from shoestring_trainer.training.errors import UserError

_NO_SETTINGS = {"seed", "precision", "gpus", "machines", "step"}
"""Parameters that the task settles, or that only choose among a recipe's variants."""


@dataclass(frozen=True)
class Settings:
    """How to train. A recipe that leaves a name out gets the value here, which is "off" where there is such a thing.

    A schedule is text, "POSITION:VALUE POSITION:VALUE …": straight lines between knots, positions as shares of the run,
    which may be fractions: "0:0 5/24:1 1:0". Two knots at one position are a jump.
    """

    epochs: float = 1
    batch_size: int = 32  # pictures per step, over all ranks
    batch_schedule: str = ""  # factors of it; it changes at the knots, at whole steps
    compile: str = "none"  # or a mode of torch.compile
    micro_batch: int = 0  # a rank's share goes through the network in parts of at most so many pictures; 0: at once
    drop_last: bool = False  # an epoch leaves out the samples that fill no batch, others each time
    optimizer: str = "sgd"  # or muon, for convolutions (the rest by sgd), lars, shampoo, kfac
    lr: float = 0.1  # highest rate of the schedule
    lr_batch: int = 0  # the batch_size that all rates are meant for: with another they grow or shrink along; 0: any
    lr_schedule: str = ""  # factors of lr, and of the other rates; empty: up from a tenth in `warmup`, down to zero
    warmup: float = 0.2  # share of the steps in which the rate rises
    bias_lr: float = 0.0  # highest rate of the norms' biases; 0: as lr
    whitening_lr: float = 0.0  # highest rate of the whitening layer's bias; 0: as lr
    whitening_schedule: str = ""  # factors of it; empty: as lr_schedule
    momentum: float = 0.9
    nesterov: bool = True
    momentum_schedule: str = ""  # momentum itself; empty: constant
    muon_lr: float = 0.24
    muon_momentum: float = 0.6
    weight_decay: float = 0.0  # of weights
    decay_biases: bool = False  # norms and biases decay as weights do
    decoupled_decay: bool = False  # weight_decay is what a step takes off at the highest rate, whatever that rate is
    sum_loss: bool = False  # the gradient is the batch's sum, not its mean
    label_smoothing: float = 0.0
    dropout: float = 0.0
    average: str = "none"  # or ema, or lookahead
    average_every: int = 5  # steps
    average_decay: float = 0.95  # of the average, per step
    average_power: float = 0.0  # the decay is multiplied by (share of the run)^power
    model: str = ""  # the network, in place of the recipe's own
    width: int = 32  # channels of the first convolution
    pool: str = ""  # before the classifier: avg, or concat for average beside maximum; empty: the network's own
    blur: bool = False  # networks from a library blur before each convolution with a stride
    small_stem: bool = False  # residual networks from a library begin as for pictures of 32 pixels
    zero_last_norms: bool = False  # residual branches of networks from a library begin as zero
    size: int = 32  # pixels a side
    size_schedule: str = ""  # pixels a side trained on and measured, changing at the knots; empty: `size`
    eval_size: int = 0  # pixels a side of held-out pictures; 0: as trained on
    eval_zoom: float = 1.0  # held-out pictures are scaled to so much more than their size, and the centre is cut out
    rectangular: bool = False  # held-out pictures are measured in their own shapes, in batches of like ones
    rectangular_schedule: str = ""  # 0 or 1, changing at the knots; empty: `rectangular`
    holdout: float = 0.2  # share of each class kept for measuring, where the data brings no split
    on_corrupt: str = "error"
    decode: str = "cpu"  # or gpu: plain JPEGs by nvJPEG, whose pixels differ a little
    check_files: bool = True  # refuse files that aren't the published ones, where the data has such
    rotate: float = 0.0  # degrees
    shift: float = 0.0  # pixels
    crop: int = 0  # pixels of padding
    crop_scale: float = 0.0  # a random crop shows at least this share of a picture, scaled to `size`; 0: no such crop
    crop_schedule: str = ""  # this share, changing at the knots; empty: `crop_scale`
    jitter: float = 0.0  # brightness, contrast and saturation each change by up to this share
    flip: bool = False
    alternating_flip: bool = False  # a sample is flipped in every other epoch
    cutout: int = 0  # pixels a side
    views: int = 1  # of a held-out picture, for val/acc_tta: 2 adds its mirror image, 6 also shifts by a pixel
    eval_every: int = 1  # epochs
    noise_every: int = 0  # steps between two measurements of the gradient noise scale; 0: none
    hooks: str = ""  # path of a Python file whose functions are called at the loop's joints
    sync_norm: bool = False  # batch norms over the whole batch, not over each process's share of it
    bucket_mb: float = 25.0  # gradients that travel together
    half_gradients: bool = False  # they travel and are summed in fp16: for where the network is the brake
    static_graph: bool = False  # every step uses the same layers, which spares a search per step

    @staticmethod
    def of(params: Mapping[str, Any]) -> Settings:
        """Settings from a recipe's resolved parameters. Raises UserError for a name outside the vocabulary."""
        known = {field.name for field in fields(Settings)}
        given = {name: value for name, value in params.items() if name not in _NO_SETTINGS}
        if unknown := sorted(set(given) - known):
            names = ", ".join(sorted(known))
            raise UserError(f"the trainer has no use for the recipe's parameter {unknown[0]}; it knows {names}")
        return Settings(**given)
