# SPDX-License-Identifier: Apache-2.0
"""`shoestring aws wheelhouse` against the fake's S3, with pip and a folder in place of a package index."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from shoestring_core import wire
from shoestring_core.wheelhouse import MAX_MANIFEST_BYTES, Wheelhouse, file_key, manifest_key
from shoestring_worker.providers.ec2.account import __main__ as command
from shoestring_worker.providers.ec2.account import wheels
from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.base_image import BASE, UBUNTU, find_image
from shoestring_worker.providers.ec2.account.doctor_wheelhouse import check_wheelhouse
from shoestring_worker.providers.ec2.account.wheelhouse import Place, WheelhouseMade, WheelhouseMaker
from shoestring_worker.providers.ec2.account.wheels import Contents

from tests.worker.providers.ec2.test_account import Killed, account_of, changes, silent
from tests.worker.providers.ec2.test_user_data import make_wheel
from tests.worker.providers.fake_aws import IMAGE, REGION, UBUNTU_IMAGE, FakeAws

BUCKET = f"shoestring-123456789012-{REGION}"
PLACE = Place(REGION, BUCKET, "service/")
LIBRARY = "nvidia_cuda_runtime"


class StoppedAfter(Aws):
    """Dies with its first call that changes something, once that has taken effect."""

    def write(self, *where: str, **arguments: Any) -> dict[str, Any]:
        super().write(*where, **arguments)
        raise Killed

    def upload(self, region: str, bucket: str, key: str, path: Path) -> None:
        super().upload(region, bucket, key, path)
        raise Killed


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that has one library."""
    (tmp_path / f"{LIBRARY}-13.0.96-py3-none-any.whl").write_bytes(make_wheel(LIBRARY, "13.0.96", __init__=""))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wheels, "OF_MACHINES", Contents(wheels.OF_MACHINES.own, (LIBRARY,)))
    return tmp_path


def make(aws: Aws, **options: Any) -> WheelhouseMade:
    return WheelhouseMaker(aws, PLACE, silent, wheels.OF_MACHINES, **options).make()


def stored(aws: FakeAws, key: str) -> bytes:
    content: bytes = aws.s3().get_object(Bucket=BUCKET, Key=f"service/{key}")["Body"].read()
    return content


def test_stopped_after_each_step_and_run_again_it_ends_the_same_and_a_run_more_changes_nothing(
    aws: FakeAws, index: Path
):
    account, stopped = account_of(aws.url), StoppedAfter(aws.url)
    aws.s3().create_bucket(Bucket=BUCKET)
    before = changes(aws)
    kills, made = 0, None
    while made is None:
        try:
            made = make(stopped)
        except Killed:
            kills += 1
            # resolved once for this installation: what the index has by now plays no part
            (index / f"{LIBRARY}-13.0.97-py3-none-any.whl").write_bytes(make_wheel(LIBRARY, "13.0.97", __init__=""))
    assert kills == changes(aws) - before == 5  # what was resolved, three wheels and the manifest
    assert made.created == 0
    assert make(account).name == made.name
    assert changes(aws) == before + kills

    manifest = stored(aws, manifest_key(made.name))
    assert len(manifest) < MAX_MANIFEST_BYTES
    found = Wheelhouse.model_validate_json(manifest)
    assert (found.python, found.cuda, found.min_driver, found.from_image) == ("3.12", "13.0", 580, False)
    names = [f"{LIBRARY}-13.0.96", "shoestring_core-0.1.0", "shoestring_trainer-0.1.0"]
    assert [file.name.partition("-py3")[0] for file in found.files] == names
    for file in found.files:
        content = stored(aws, file_key(file.sha256))
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)


def test_a_dry_run_tells_what_would_be_uploaded_and_uploads_nothing(aws: FakeAws):
    aws.s3().create_bucket(Bucket=BUCKET)
    made = make(StoppedAfter(aws.url), from_image=True, dry_run=True)
    assert (made.name, made.created) == ("", 2)
    assert aws.s3().list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0


def test_what_pip_does_not_find_is_told_and_the_command_names_the_setting(
    aws: FakeAws, index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    aws.s3().create_bucket(Bucket=BUCKET)
    monkeypatch.setenv("SHOESTRING_EC2_ENDPOINT_URL", aws.url)
    monkeypatch.delenv("SHOESTRING_OBJECT_STORE", raising=False)
    (index / f"{LIBRARY}-13.0.96-py3-none-any.whl").unlink()
    assert command.main(["wheelhouse"]) != 0
    assert f"No matching distribution found for {LIBRARY}" in capsys.readouterr().err
    assert command.main(["wheelhouse", "--image-packages"]) == 0
    name, _, value = capsys.readouterr().out.strip().removeprefix("export ").partition("=")
    assert (name, Wheelhouse.model_validate_json(stored(aws, manifest_key(value))).from_image) == (
        "SHOESTRING_EC2_WHEELHOUSE", True,
    )  # fmt: skip
    monkeypatch.setenv("SHOESTRING_OBJECT_STORE", "/var/lib/objects")
    assert command.main(["wheelhouse"]) == 2
    assert "a wheelhouse needs s3://BUCKET/PREFIX" in capsys.readouterr().err


def test_our_wheels_are_the_same_each_time_and_hold_the_packages_that_run_here(tmp_path: Path):
    own = wheels.OF_MACHINES.own
    core, trainer = wheels.make_own_wheels(tmp_path, own)
    first = [core.read_bytes(), trainer.read_bytes()]
    assert [path.read_bytes() for path in wheels.make_own_wheels(tmp_path, own)] == first
    with zipfile.ZipFile(core) as archive:
        assert archive.read("shoestring_core/wire.py") == Path(wire.__file__).read_bytes()
        assert "shoestring_core/py.typed" in archive.namelist()
        assert not [name for name in archive.namelist() if "__pycache__" in name]


def test_stock_images_are_found_by_their_parameter_or_by_their_name(aws: FakeAws):
    account = account_of(aws.url)
    for wanted, id_ in ((BASE, IMAGE), (UBUNTU, UBUNTU_IMAGE)):
        assert find_image(account, REGION, wanted) == id_
        aws.fault("error", "GetParameter", code="AccessDeniedException", status=400, message="not authorized")
        assert find_image(account, REGION, wanted) == id_
    aws.fault("error", "GetParameter", code="ParameterNotFound", status=400, message="")
    aws.fault("error", "DescribeImages", code="AuthFailure", status=401, message="")
    with pytest.raises(AwsError, match="AuthFailure"):
        find_image(account, REGION, BASE)


def test_bootstrap_without_an_image_prints_the_base_image_and_the_wheelhouse(
    aws: FakeAws, index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SHOESTRING_EC2_ENDPOINT_URL", aws.url)
    assert command.main(["bootstrap", "--dry-run"]) == 0
    assert "about 3 GB" in capsys.readouterr().err
    assert command.main(["bootstrap"]) == 0
    lines = dict(line.removeprefix("export ").split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert json.loads(lines["SHOESTRING_EC2_REGIONS"].strip("'"))[REGION]["image"] == IMAGE
    name, store = lines["SHOESTRING_EC2_WHEELHOUSE"], lines["SHOESTRING_OBJECT_STORE"]
    open_client = command.Account().open_client
    found = check_wheelhouse(open_client, REGION, store, name)
    assert (found.level, found.text[:9]) == ("ok", "3 wheels,")
    assert found.text.endswith("MB, for Python 3.12; it needs NVIDIA's driver 580 or later")
    for wrong in (("s3://elsewhere/x", name), (store, "0" * 64), ("/var/objects", name)):
        assert check_wheelhouse(open_client, REGION, *wrong).level == "error"
