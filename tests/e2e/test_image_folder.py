# SPDX-License-Identifier: Apache-2.0
"""Somebody's own images, from a folder to a model that plain PyTorch loads; and no other folder is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shoestring.client import ServiceError
from shoestring_core import rest

from tests.e2e import witness
from tests.e2e.service import Service, start
from tests.soak import images
from tests.trainer.data_sync.bucket_server import BUCKET, Bucket, serving

MEASURED = ("val/acc", "val/loss")
SIDE = 16
PER_CLASS = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    """Stripes that lie, stand or cross, in any colours, with noise."""
    draw = np.random.default_rng(1)
    for name in ("lying", "standing", "crossed"):
        (root / "roots" / "stripes" / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            period, phase = draw.integers(3, 6), draw.integers(0, 6)
            stripes = (np.arange(SIDE) + phase) % period < period / 2
            shape = {"lying": stripes[:, None], "standing": stripes[None, :], "crossed": stripes[:, None] ^ stripes}
            colours = draw.integers(0, 255, (2, 3))
            pixels = np.where(np.broadcast_to(shape[name], (SIDE, SIDE))[..., None], colours[0], 255 - colours[0])
            pixels = np.clip(pixels + draw.integers(-20, 20, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "roots" / "stripes" / name / f"{number:02d}.png")
    return root / "roots" / "stripes"


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[Bucket]:
    """A private one, with the images of the folder."""
    with serving() as bucket:
        bucket.put_folder(folder, "stripes/")
        bucket.access_key = "AKIATEST"
        yield bucket


@pytest.fixture(scope="module")
def service(root: Path, folder: Path, bucket: Bucket) -> Iterator[Service]:
    options = ("--budget", "5.00", "--slots", "2", "--data-root", str(folder.parent))
    keys = {"ACCESS_KEY_ID": "AKIATEST", "SECRET_ACCESS_KEY": "secret", "ENDPOINT_URL": bucket.url}
    environment = {f"SHOESTRING_AGENT_AWS_{name}": value for name, value in keys.items()}
    service = start(root, options=options, environment=environment)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def from_folder(service: Service, folder: Path) -> rest.Job:
    """A job that trained on the folder's images."""
    return service.settled(service.client.submit(spec(folder)).id)


def spec(place: Path | str) -> dict[str, object]:
    return {
        "recipe": "imagefolder/resnet9",
        "data": {"train": str(place)},
        "params": {
            "epochs": 8, "batch_size": 16, "width": 8, "image_size": SIDE, "crop_padding": 2,
            "flip": False, "cutout": 0, "lr": 0.05,
        },
        "resources": {"nodes": 1},
    }  # fmt: skip


def test_a_folder_of_images_becomes_a_model_that_plain_pytorch_scores_alike(
    service: Service, from_folder: rest.Job, folder: Path, tmp_path: Path
) -> None:
    job = from_folder
    assert job.end_reason == "succeeded"
    model = images.download(service.client, job.id, tmp_path / "model")
    card = json.loads((model / "model.json").read_text())
    assert card["classes"] == ["crossed", "lying", "standing"]
    assert card["images"] == {"train": 96, "val": 24, "skipped": 0}
    assert job.result is not None
    assert job.result["val/acc"] > 0.6  # by chance: 0.33
    assert images.score(model, folder) == pytest.approx(job.result["val/acc"], abs=1e-6)
    witness.require_none_alive(service.data)


def test_images_in_a_bucket_train_as_those_in_a_folder_do(
    service: Service, bucket: Bucket, from_folder: rest.Job
) -> None:
    there = service.client.submit(spec(f"s3://{BUCKET}/stripes")).id
    here, result = from_folder.result, service.settled(there).result
    assert here
    assert result
    assert [here[name] for name in MEASURED] == [result[name] for name in MEASURED]
    assert len(set(bucket.requested_keys)) == 3 * PER_CLASS


def test_a_path_outside_the_roots_is_answered_like_one_that_does_not_exist(service: Service, folder: Path) -> None:
    outside = folder.parent.parent / "outside"
    for name in ("a", "b"):
        (outside / name).mkdir(parents=True)
    (folder.parent / "link").symlink_to(outside)

    def refusals(*paths: Path) -> set[str]:
        answers = set()
        for path in paths:
            with pytest.raises(ServiceError) as refused:
                service.client.submit(spec(path))
            answers.add(refused.value.problem.model_dump_json(include={"errors"}).replace(str(path), "PATH"))
        return answers

    before = service.client.jobs().jobs
    (outer,) = refusals(
        outside, outside / "missing", folder.parent / ".." / "outside", folder.parent / "link", Path("/nowhere")
    )
    assert "'PATH' is not a folder that jobs may read" in outer
    (inner,) = refusals(folder.parent / "missing", folder / "lying" / "00.png")
    assert "There is no folder 'PATH'" in inner
    assert service.client.jobs().jobs == before
