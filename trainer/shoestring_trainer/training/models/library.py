# SPDX-License-Identifier: Apache-2.0
"""Networks of torchvision and timm by name, and what can be changed about them. Importing this takes seconds."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.vision_compat import BlurPool2d, SelectAdaptivePool2d, models, timm

BLURRED_FROM = 16
"""A convolution of fewer channels (the stem's) is not blurred: it sees the image itself."""


def library_model(name: str, channels: int, classes: int, settings: Settings) -> nn.Module:
    """torchvision/NAME or timm/NAME, untrained, for `classes`. Uses `pool`, `blur`, `small_stem`, `zero_init_residual`.

    Raises UserError for a name that the library doesn't have, or an option that its network has no place for.
    """
    library, _, plain = name.partition("/")
    build = _from_timm if library == "timm" else _from_torchvision
    model = build(plain, channels, classes, settings)
    if settings.small_stem:
        _shrink_stem(model, name)
    if settings.blur_pool:
        _blur_strides(model)
    return model


def _from_torchvision(name: str, channels: int, classes: int, settings: Settings) -> nn.Module:
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(f"torchvision/{name}", known)
    if channels != 3:
        raise UserError(f"torchvision/{name} takes images of 3 channels, these have {channels}; use timm/{name}")
    options: dict[str, Any] = {"zero_init_residual": True} if settings.zero_init_residual else {}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    model: nn.Module = _build(
        f"torchvision/{name}", models.get_model, name, weights=None, num_classes=classes, **options
    )
    if settings.global_pool == "concat":
        head = getattr(model, "fc", None)
        if not isinstance(head, nn.Linear) or not hasattr(model, "avgpool"):
            raise UserError(f"torchvision/{name} has no pool before one classifier; leave pool at avg, or use timm's")
        model.avgpool = SelectAdaptivePool2d(pool_type="catavgmax")
        model.fc = nn.Linear(2 * head.in_features, classes)
    return model


def _from_timm(name: str, channels: int, classes: int, settings: Settings) -> nn.Module:
    if not timm.is_model(name):
        raise _unknown(f"timm/{name}", timm.list_models())
    options: dict[str, Any] = {"global_pool": "catavgmax"} if settings.global_pool == "concat" else {}
    if settings.zero_init_residual:
        options["zero_init_last"] = True
    model: nn.Module = _build(
        f"timm/{name}", timm.create_model, name, pretrained=False, num_classes=classes, in_chans=channels, **options
    )
    return model


def _build(name: str, build: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return build(*arguments, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"{name} can't be built with these parameters ({error}); leave pool and the like alone"
        ) from error


def _unknown(name: str, known: list[str]) -> UserError:
    library, _, plain = name.partition("/")
    near = difflib.get_close_matches(plain, known, n=3, cutoff=0.5)
    meant = f"did you mean {', '.join(f'{library}/{one}' for one in near)}?" if near else "see its documentation"
    return UserError(f"{library} has no classifier called {plain!r}; {meant}")


def _shrink_stem(model: nn.Module, name: str) -> None:
    """A 3x3 convolution without a stride in place of the 7x7 one, and no pool after it: for images of 32 pixels."""
    stem = getattr(model, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise UserError(f"{name} has no stem of a residual network; leave small_stem out")
    model.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def _blur_strides(model: nn.Module) -> None:
    """A binomial 3x3 blur before each convolution with a stride, as in FFCV's ResNets."""
    for module in list(model.modules()):
        for name, conv in list(module.named_children()):
            if isinstance(conv, nn.Conv2d) and max(conv.stride) > 1 and conv.in_channels >= BLURRED_FROM:
                setattr(module, name, nn.Sequential(BlurPool2d(conv.in_channels, filt_size=3, stride=1), conv))
