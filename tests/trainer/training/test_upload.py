# SPDX-License-Identifier: Apache-2.0
"""What goes to a GPU goes through one function, from pinned memory and beside the steps: shown without a GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from shoestring_trainer import training
from shoestring_trainer.training import upload as module
from shoestring_trainer.training.data.decode_workers import ImageStream
from shoestring_trainer.training.data.stalls import InputStalls
from shoestring_trainer.training.upload import upload, upload_rows
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda", 0)


class FakeStream:
    """A stream of a GPU that isn't there. `seen` is what streams were asked for, in order."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self._seen = name, seen

    def wait_stream(self, other: FakeStream) -> None:
        self._seen.append(f"{self.name} wait for {other.name}")


class FakeGPU(TorchFunctionMode):
    """Records what moves to the GPU, and in which stream; it stays where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.steps, self.uploads = FakeStream("steps", self.seen), FakeStream("uploads", self.seen)
        self._current = self.steps

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self._current = self._current, stream
        yield
        self._current = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        match getattr(func, "__name__", ""):
            case "empty" if kwargs.pop("pin_memory", False):
                self.seen.append("pinned")
            case "index_select":
                self.seen.append("gathered")
                assert "out" in kwargs
            case "pin_memory":
                self.seen.append("pinned")
                return args[0].clone()
            case "to" if GPU in args:
                assert kwargs == {"non_blocking": True}
                self.seen.append(f"copied in {self._current.name}")
                return args[0].clone()
        return func(*args, **kwargs)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    gpu = FakeGPU()
    monkeypatch.setattr(torch.cuda, "stream", gpu.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: gpu.steps)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: gpu.seen.append(f"used by {stream.name}"))
    monkeypatch.setattr(module, "upload_stream", lambda device: gpu.uploads)
    with gpu:
        yield gpu


UPLOAD = ["pinned", "copied in uploads", "steps wait for uploads", "used by steps"]


def test_an_upload_is_a_copy_from_pinned_memory_beside_the_steps_which_wait_for_it_before_its_use(gpu: FakeGPU):
    host = torch.arange(5)
    assert torch.equal(upload(host, GPU), host)
    assert gpu.seen == UPLOAD


def test_decoded_images_go_to_the_gpu_by_the_same_way(gpu: FakeGPU):
    chunks = [torch.full((size, 2, 2, 3), size, dtype=torch.uint8) for size in (3, 4)]
    stream, stalls = ImageStream(iter([(chunk, 0.0) for chunk in chunks])), InputStalls()
    taken = [stream.take(count, GPU, stalls) for count in (2, 5)]
    assert torch.equal(torch.cat(taken).permute(0, 2, 3, 1), torch.cat(chunks))
    assert gpu.seen == 3 * UPLOAD


def test_a_batch_is_gathered_into_pinned_memory_by_one_call(gpu: FakeGPU):
    images, rows = torch.arange(24, dtype=torch.uint8).view(4, 3, 2), torch.tensor([2, 0, 2])
    assert torch.equal(upload_rows(images, rows, GPU), images[rows])
    assert gpu.seen == ["pinned", "gathered", *UPLOAD]  # what is pinned is not copied again


def test_on_a_cpu_nothing_is_copied():
    host = torch.arange(5)
    assert upload(host, torch.device("cpu")) is host


def test_no_other_module_of_training_pins_memory_or_copies_without_waiting():
    sources = {path: path.read_text() for path in Path(training.__file__).parent.rglob("*.py")}
    found = {path.name for path, source in sources.items() if re.search(r"non_blocking|\.pin_memory\(", source)}
    assert found == {"upload.py"}
