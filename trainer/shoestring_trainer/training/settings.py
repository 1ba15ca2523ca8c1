# SPDX-License-Identifier: Apache-2.0
"""The parameters that the trainer knows: every name a recipe may use, what it means, and its neutral value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from shoestring_trainer.training.errors import UserError

_NO_SETTINGS = {"seed", "precision", "gpus", "machines", "step"}
"""Parameters that the task has as fields of its own, or that only select one of a recipe's variants."""


@dataclass(frozen=True)
class Settings:
    """How to train. A recipe that leaves a parameter out gets the value here, which is "off" where there is one.

    A schedule is text, "POSITION:VALUE POSITION:VALUE …": linear interpolation between breakpoints, whose positions are
    fractions of the run, also written as such: "0:0 5/24:1 1:0". Two breakpoints at one position are a jump.
    """

    epochs: float = 1
    batch_size: int = 32  # images per step, over all ranks
    batch_size_schedule: str = ""  # factors of it; changes at the breakpoints, at whole steps
    deterministic: bool = True  # on a GPU too, the same steps give the same bits
    compile: str = "none"  # or a mode of torch.compile
    micro_batch_size: int = 0  # gradient accumulation: a rank's share is split into micro-batches; 0: no split
    drop_last: bool = False  # an epoch leaves out the samples that don't fill a batch, different ones each time
    optimizer: str = "sgd"  # or muon, for convolutions (the rest by sgd), lars, shampoo, kfac
    lr: float = 0.1  # peak of the schedule
    lr_base_batch_size: int = 0  # the batch_size that learning rates are meant for: they scale linearly; 0: any
    lr_schedule: str = ""  # factors of lr and the other rates; empty: up from a tenth in `warmup_ratio`, down to zero
    warmup_ratio: float = 0.2  # fraction of the steps in which the learning rate rises
    bias_lr: float = 0.0  # peak learning rate of the norms' biases; 0: as lr
    whitening_lr: float = 0.0  # peak learning rate of the whitening layer's bias; 0: as lr
    whitening_lr_schedule: str = ""  # factors of it; empty: as lr_schedule
    momentum: float = 0.9
    nesterov: bool = True
    momentum_schedule: str = ""  # momentum itself; empty: constant
    muon_lr: float = 0.24
    muon_momentum: float = 0.6
    preconditioner_every_steps: int = 10  # shampoo, kfac: steps between two updates of a preconditioner
    preconditioner_damping: float = 0.03  # added to each eigenvalue, as a fraction of their mean
    kfac_fisher: str = "empirical"  # or sampled: labels are drawn from the network's predictions
    weight_decay: float = 0.0  # of weights
    decay_norms_and_biases: bool = False  # weight decay applies to norms and biases too
    decoupled_weight_decay: bool = False  # weight_decay is what a step takes off at the peak learning rate
    sum_loss: bool = False  # the loss is the batch's sum, not its mean
    label_smoothing: float = 0.0
    dropout: float = 0.0
    weight_average: str = "none"  # or ema, or lookahead
    weight_average_every_steps: int = 5
    weight_average_decay: float = 0.95  # per step
    weight_average_power: float = 0.0  # the decay is multiplied by (completed fraction of the run)^power
    model: str = ""  # the network, in place of the recipe's own
    width: int = 32  # channels of the first convolution
    global_pool: str = ""  # avg, or concat for average and maximum; empty: the network's own
    blur_pool: bool = False  # library networks blur before each strided convolution
    small_stem: bool = False  # library ResNets get a stem for 32-pixel images
    zero_init_residual: bool = False  # residual branches of library networks start at zero
    classifier_std: float = 0.0  # of the initial weights of a library network's classifier; 0: the library's
    image_size: int = 32  # pixels a side
    image_size_schedule: str = (
        ""  # pixels a side in training and evaluation, changing at the breakpoints; empty: `image_size`
    )
    eval_image_size: int = 0  # pixels a side of validation images; 0: as in training
    eval_resize_factor: float = 1.0  # validation images are resized to this multiple, then center-cropped
    rectangular_eval: bool = False  # validation images keep their aspect ratio, in batches of similar ones
    rectangular_eval_schedule: str = ""  # 0 or 1, changing at the breakpoints; empty: `rectangular_eval`
    val_fraction: float = 0.2  # of each class, where the data has no split of its own
    on_corrupt: str = "error"
    decode_device: str = "cpu"  # or gpu: plain JPEGs by nvJPEG, whose pixels differ slightly
    verify_checksums: bool = True  # reject files that aren't the published ones, where the data has such
    rotate: float = 0.0  # degrees
    translate: float = 0.0  # pixels
    crop_padding: int = 0  # pixels
    crop_scale: float = 0.0  # smallest area of a random resized crop, as a fraction of the image; 0: no such crop
    crop_scale_schedule: str = ""  # changing at the breakpoints; empty: `crop_scale`
    color_jitter: float = 0.0  # brightness, contrast and saturation each change by up to this fraction
    flip: bool = False
    alternating_flip: bool = False  # a sample is flipped in every other epoch
    cutout: int = 0  # pixels a side
    tta_views: int = 1  # of a validation image, for val/acc_tta: 2 adds its mirror image, 6 also shifts by a pixel
    eval_every_epochs: int = 1
    noise_scale_every_steps: int = 0  # 0: the gradient noise scale is not measured
    hooks_file: str = ""  # path of a Python file whose functions the training loop calls
    sync_batch_norm: bool = False  # batch norms over the global batch, not over each rank's share
    bucket_cap_mb: float = 25.0  # of DDP
    fp16_allreduce: bool = False  # gradients are sent and summed in fp16: for where the network is the bottleneck
    static_graph: bool = False  # of DDP: every step uses the same layers

    @staticmethod
    def from_params(params: Mapping[str, Any]) -> Settings:
        """Return the settings of a recipe's resolved parameters. Raises UserError for a name that is not known here."""
        known = {field.name for field in fields(Settings)}
        given = {name: value for name, value in params.items() if name not in _NO_SETTINGS}
        if unknown := sorted(set(given) - known):
            names = ", ".join(sorted(known))
            raise UserError(f"the trainer has no use for the recipe's parameter {unknown[0]}; it knows {names}")
        return Settings(**given)
