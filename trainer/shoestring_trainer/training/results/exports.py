# SPDX-License-Identifier: Apache-2.0
"""Export trained models as model.pt2 (torch.export) and model.onnx, and load exported models for prediction.

Both files contain their description (model.json), so each can be used by itself.
"""

from __future__ import annotations

import copy
import io
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from shoestring_core.regular_files import read_regular, require_regular
from shoestring_core.task import MAX_CHECKPOINT_BYTES
from torch import Tensor, nn
from torch.export import ExportedProgram

from shoestring_trainer.training.checkpoint.files import read_checkpoint
from shoestring_trainer.training.errors import DataError, TrainerError, UserError
from shoestring_trainer.training.lazy_dynamo import restore_dynamo

CARD = "model.json"
ARCHIVE = "model.pt2"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MAX_SIDE, _MAX_ZOOM = 10_000, 100
"""Of a model that predicts: more are a damaged number."""
FETCH_AGAIN = "download it again: shoestring artifacts get JOB model.pt2"


@dataclass(frozen=True)
class Model:
    """A trained model for prediction.

    card     the content of model.json: classes, input, metrics, …
    logits   maps images_NCHW, float32, 0 is black and 1 is white, to logits_NK
    program  the exported program; None for an ONNX model
    """

    card: dict[str, Any]
    logits: Callable[[Tensor], Tensor]
    program: ExportedProgram | None = None

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.card["classes"]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images it was trained on."""
        channels, height, width = self.card["input"]["shape"][1:]
        return channels, height, width

    @property
    def zoom(self) -> float:
        """Images are resized to this multiple of the input size before the center crop."""
        return float(self.card["input"].get("zoom", 1.0))


def export_program(model: nn.Module, sample_NCHW: Tensor) -> ExportedProgram:
    """Export the model so that plain PyTorch can load it: eval mode, fp32, CPU, any batch size.

    Raises TrainerError if that does not compute what `model` does.
    """
    restore_dynamo()
    plain = copy.deepcopy(model).cpu().eval()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with torch.no_grad():
        program = torch.export.export(plain, (sample_NCHW,), dynamic_shapes=({0: torch.export.Dim("N", min=1)},))
        _require_same("exported", program.module()(sample_NCHW), plain(sample_NCHW))
    return program


def pack_program(program: ExportedProgram, card: bytes) -> bytes:
    """Return the content of model.pt2."""
    archive = io.BytesIO()
    torch.export.save(program, archive, extra_files={CARD: card.decode()})
    return archive.getvalue()


def pack_weights(model: nn.Module) -> bytes:
    """Return network.safetensors: the network's tensors under its library's names, without the input normalization."""
    network = list(model.children())[-1]
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content: bytes = save_tensors(tensors, metadata={"format": "pt"})
    return content


def pack_onnx(program: ExportedProgram, card: bytes, sample_NCHW: Tensor) -> bytes:
    """Return model.onnx: one input `images`, one output `logits`, any batch size; verified in ONNX Runtime.

    Raises UserError if the packages for it are missing, TrainerError if it does not compute what `program` does.
    """
    require_onnx()
    restore_dynamo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own deprecations, and of names for the batch's size
        written = torch.onnx.export(
            program, (sample_NCHW,), dynamo=True, external_data=False, verbose=False,
            input_names=["images"], output_names=["logits"],
        )  # fmt: skip
    assert written is not None
    proto = written.model_proto
    proto.metadata_props.add(key=CARD, value=card.decode())
    content: bytes = proto.SerializeToString()
    with torch.no_grad():
        _require_same("ONNX", _run_onnx(content)(sample_NCHW), program.module()(sample_NCHW))
    return content


def write_onnx(source: Path, target: Path) -> None:
    """Write the model at `source` as ONNX. Raises DataError or UserError."""
    if target.suffix != ".onnx":
        raise UserError(f"{target} must end in .onnx, the only export format")
    require_onnx()
    try:
        require_regular(target)
        target.parent.stat()
    except OSError as error:  # before minutes of work
        raise UserError(f"cannot write {target}: {error.strerror}; choose another path") from error
    model = read_model(source)
    if model.program is None:
        raise UserError(f"{source} is ONNX already; copy it")
    sample_NCHW = torch.linspace(0, 1, 8 * math.prod(model.shape)).view(8, *model.shape)
    content = pack_onnx(model.program, json.dumps(model.card).encode(), sample_NCHW)
    draft = target.with_name(f".{target.name[:200]}.part")
    try:
        draft.write_bytes(content)
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(f"cannot write {target}: {error.strerror}; choose another path") from error


def require_onnx() -> None:
    """Raise UserError, with the command to install them, if packages for ONNX are missing."""
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        raise UserError(f"ONNX export needs {', '.join(missing)}; run: pip install 'shoestring-trainer[onnx]'")


def read_model(path: Path) -> Model:
    """Load the model at `path`: a .pt2 or .onnx file, the manifest of a final checkpoint, or a folder with one.

    Raises DataError that names the file and the remedy.
    """
    file = _find(path)
    match file.suffix:
        case ".json":
            parts = read_checkpoint(file.with_suffix(".data"), file)
            if ARCHIVE not in parts:
                raise DataError(
                    f"the checkpoint {file} contains no {ARCHIVE}: it was saved before the end of training; "
                    "give the last checkpoint of a finished run"
                )
            return _read_program(parts[ARCHIVE], file, parts.get(CARD))
        case ".onnx":
            require_onnx()
            return _read_onnx(_content(file), file)
        case _:
            beside = file.with_name(CARD)
            return _read_program(_content(file), file, read_regular(beside) if beside.exists() else None)


def _find(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        if path.suffix in (".pt2", ".onnx", ".json"):
            return path
        raise DataError(f"{path} is not a model file; give a model.pt2, a model.onnx or a folder with one of them")
    if not path.is_dir():
        raise DataError(f"{path} does not exist; give a model.pt2, a model.onnx or a folder with one of them")
    for found in (path / ARCHIVE, path / "model" / ARCHIVE, path / "model.onnx"):
        if found.is_file():
            return found
    if manifests := sorted(path.glob("ckpt/step-*.json")):
        return manifests[-1]
    raise DataError(
        f"{path} contains no model.pt2 and no model.onnx; download them: shoestring artifacts get JOB --to {path}"
    )


def _content(file: Path) -> bytes:
    try:
        return read_regular(file, MAX_CHECKPOINT_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; {FETCH_AGAIN}") from error


def _read_program(content: bytes, source: Path, card: bytes | None) -> Model:
    inside = {CARD: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(content), extra_files=inside)
            module = program.module()
    except Exception as error:  # a damaged archive raises anything
        raise DataError(
            f"{source} was not written by torch.export, or is truncated ({_first_line(error)}); {FETCH_AGAIN}"
        ) from error

    @torch.no_grad()
    def logits(images_NCHW: Tensor) -> Tensor:
        result: Tensor = module(images_NCHW)
        return result

    return Model(_read_card(inside[CARD] or card, source), logits, program)


def _read_onnx(content: bytes, source: Path) -> Model:
    import onnx

    try:
        properties = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
        logits = _run_onnx(content)
    except Exception as error:  # protobuf and the runtime raise their own kinds
        raise DataError(
            f"{source} is not an ONNX model, or is truncated ({_first_line(error)}); "
            "export it again: shoestring export JOB model.onnx"
        ) from error
    return Model(_read_card(properties.get(CARD), source), logits)


def _run_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def logits(images_NCHW: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images_NCHW.numpy()})[0])

    return logits


def _read_card(text: str | bytes | None, source: Path) -> dict[str, Any]:
    try:
        card = json.loads(text or "")
        _, *shape = card["input"]["shape"]
        if len(shape) != 3 or not all(type(number) is int and 1 <= number <= _MAX_SIDE for number in shape):
            raise ValueError(f"its input has the shape {shape}, where channels, height and width are needed")
        if not isinstance(card["classes"], list) or not card["classes"]:
            raise ValueError("its classes are no list of names")
        if not 1 <= float(card["input"].get("zoom", 1.0)) <= _MAX_ZOOM:
            raise ValueError(f"its input has the zoom {card['input']['zoom']}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{source} lacks a description of its classes and input, so it wasn't written by this trainer; "
            f"put the {CARD} of its job beside it ({_first_line(error)})"
        ) from error
    return dict(card)


def _require_same(what: str, found_NK: Tensor, expected_NK: Tensor) -> None:
    if not torch.allclose(found_NK, expected_NK, atol=1e-4, rtol=1e-4):
        raise TrainerError(
            f"the outputs of the {what} model differ from the trained model's; please report this recipe"
        )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
