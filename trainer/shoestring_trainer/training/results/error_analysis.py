# SPDX-License-Identifier: Apache-2.0
"""What a model gets wrong: its confusion matrix, and the validation images that it finds hardest."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoestring_trainer.training.data.dataset import ImageDataset
from shoestring_trainer.training.results.evaluation import EvalResult

WORST = 48
LARGEST_TABLE = 40
"""With more classes a table is unreadable, and the page lists the commonest confusions instead."""
COMMONEST = 40
THUMBNAIL = 96


@dataclass(frozen=True)
class HardExample:
    """A validation image with a high loss.

    index        its place in split.json and predictions.json
    name         its file, or its number
    probability  that the model gives the label
    """

    index: int
    name: str
    label: str
    predicted: str
    loss: float
    probability: float


def count_confusions(labels_N: Tensor, predictions_N: Tensor, classes: int) -> Tensor:
    """counts_KK: how many images of the class in the row the model took for the class in the column."""
    return torch.bincount(labels_N * classes + predictions_N, minlength=classes**2).view(classes, classes)


def hardest_examples(data: ImageDataset, eval_result: EvalResult) -> list[HardExample]:
    """The `WORST` validation images with the highest loss, worst first; of equals the first."""
    names, classes = data.val_names, data.classes
    order = eval_result.losses_N.nan_to_num(nan=math.inf).sort(descending=True, stable=True).indices[:WORST]
    return [
        HardExample(
            index=index,
            name=names[index],
            label=classes[int(data.val.labels_N[index])],
            predicted=classes[int(eval_result.predictions_N[index])],
            loss=round(loss, 6),
            probability=round(math.exp(-loss), 6),
        )
        for index, loss in ((index, float(eval_result.losses_N[index])) for index in order.tolist())
    ]


def render_page(title: str, data: ImageDataset, eval_result: EvalResult, facts: dict[str, Any]) -> str:
    """One HTML page that needs nothing else: the metrics, the confusion matrix, the worst images."""
    counts_KK = count_confusions(data.val.labels_N, eval_result.predictions_N, len(data.classes))
    shown = (f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    table = _table(data.classes, counts_KK) if len(data.classes) <= LARGEST_TABLE else _list(data.classes, counts_KK)
    figures = (_figure(example, data) for example in hardest_examples(data, eval_result))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(title)}</title><style>{STYLE}</style>'
        f"<h1>{_text(title)}</h1><dl>{''.join(shown)}</dl>"
        f"<h2>Confusions</h2><p>Rows are the true class, columns the prediction.</p>{table}"
        f"<h2>Hardest images</h2><p>Highest loss first: true class → prediction.</p>"
        f"<div>{''.join(figures)}</div></html>\n"
    )


STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1em } dd { margin: 0 }
table { border-collapse: collapse } th { font-weight: normal } thead th { writing-mode: vertical-rl; padding: 4px }
tbody th { text-align: right; padding-right: 8px }
td { min-width: 2em; text-align: right; padding: 2px 6px; border: 1px solid #ddd }
td.right { font-weight: bold } div { display: flex; flex-wrap: wrap; gap: 12px }
figure { margin: 0; width: 112px; overflow-wrap: anywhere; font-size: 12px }
img { width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; background: #eee }
"""


def _table(classes: Sequence[str], counts_KK: Tensor) -> str:
    rows = []
    for label, counts_K in enumerate(counts_KK.tolist()):
        whole = max(1, sum(counts_K))
        cells = "".join(
            f'<td class="{"right" if label == column else "wrong"}" style="{_shade(count / whole, label == column)}">'
            f"{count or ''}</td>"
            for column, count in enumerate(counts_K)
        )
        rows.append(f"<tr><th>{_text(classes[label])}</th>{cells}</tr>")
    head = "".join(f"<th>{_text(name)}</th>" for name in classes)
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _list(classes: Sequence[str], counts_KK: Tensor) -> str:
    rows = (
        f"<tr><td>{count}</td><th>{_text(classes[label])}</th><th>{_text(classes[prediction])}</th></tr>"
        for count, label, prediction in _commonest(counts_KK)
    )
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _commonest(counts_KK: Tensor) -> Iterator[tuple[int, int, int]]:
    """(count, label, prediction) of the commonest confusions."""
    wrong_KK = counts_KK.clone().fill_diagonal_(0)
    top = wrong_KK.flatten().topk(min(COMMONEST, wrong_KK.numel()))
    for count, place in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        if count:
            yield count, *divmod(place, len(counts_KK))


def _figure(example: HardExample, data: ImageDataset) -> str:
    source = _data_url(data.val.images_NCHW[example.index].float() * (255 / data.max_value))
    caption = f"{_text(example.label)} → {_text(example.predicted)}"
    return (
        f'<figure><img src="{source}" alt=""><figcaption>{caption}<br>loss {example.loss:.2f}<br>{_text(example.name)}'
        "</figcaption></figure>"
    )


def _data_url(pixels_CHW: Tensor) -> str:
    """The image inside the page itself: exact where it is tiny, else a small JPEG."""
    from PIL import Image

    pixels_HWC = pixels_CHW.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
    kind = "png" if max(image.size) <= THUMBNAIL // 2 else "jpeg"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _shade(share: float, is_right: bool) -> str:
    hue = "46, 125, 50" if is_right else "198, 40, 40"
    return f"background: rgba({hue}, {min(0.6, 0.6 * share**0.5):.2f})"


def _text(value: object) -> str:
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))
