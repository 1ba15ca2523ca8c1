# SPDX-License-Identifier: Apache-2.0
"""Models of torchvision and timm by name, with optional modifications. Importing this module takes seconds."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.vision_compat import BlurPool2d, SelectAdaptivePool2d, models, timm

MIN_BLUR_CHANNELS = 16
"""A convolution of fewer input channels (the stem's) gets no blur: its input is the image itself."""


def build_library_model(name: str, channels: int, classes: int, settings: Settings) -> nn.Module:
    """Return torchvision/NAME or timm/NAME, with random weights.

    Uses `global_pool`, `blur_pool`, `small_stem`, `zero_init_residual` and `classifier_std`.

    Raises UserError for a name that the library doesn't have, or an option that its model doesn't support.
    """
    library, _, short_name = name.partition("/")
    build = _from_timm if library == "timm" else _from_torchvision
    model = build(short_name, channels, classes, settings)
    if settings.small_stem:
        _use_small_stem(model, name)
    if settings.blur_pool:
        _add_blur_pool(model)
    if settings.classifier_std:
        _init_classifier(model, name, classes, settings.classifier_std)
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
            raise UserError(
                f"torchvision/{name} has no pool before a single linear classifier; leave global_pool at avg, or use a "
                "model of timm"
            )
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
            f"{name} can't be built with these parameters ({error}); leave global_pool and the like at their defaults"
        ) from error


def _unknown(name: str, known: list[str]) -> UserError:
    library, _, short_name = name.partition("/")
    similar = difflib.get_close_matches(short_name, known, n=3, cutoff=0.5)
    names = ", ".join(f"{library}/{match}" for match in similar)
    hint = f"did you mean {names}?" if similar else "see its documentation"
    return UserError(f"{library} has no classifier called {short_name!r}; {hint}")


def _use_small_stem(model: nn.Module, name: str) -> None:
    """Replace the 7x7 stem convolution by a 3x3 one of stride 1, and remove its max pool: for images of 32 pixels."""
    stem = getattr(model, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise UserError(f"{name} has no ResNet stem; remove small_stem")
    model.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def _init_classifier(model: nn.Module, name: str, classes: int, std: float) -> None:
    """Initialize the classifier's weights with mean 0 and this standard deviation."""
    heads = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == classes]
    if not heads:
        raise UserError(f"{name} has no linear classifier; set classifier_std to 0")
    nn.init.normal_(heads[-1].weight, std=std)


def _add_blur_pool(model: nn.Module) -> None:
    """Add a binomial 3x3 blur before each strided convolution, as in FFCV's ResNets (BlurPool)."""
    for module in list(model.modules()):
        for name, conv in list(module.named_children()):
            if isinstance(conv, nn.Conv2d) and max(conv.stride) > 1 and conv.in_channels >= MIN_BLUR_CHANNELS:
                blur = BlurPool2d(conv.in_channels, filt_size=3, stride=1, pad_mode="constant")  # as there, by zeros
                setattr(module, name, nn.Sequential(blur, conv))
