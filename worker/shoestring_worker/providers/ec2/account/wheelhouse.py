# SPDX-License-Identifier: Apache-2.0
"""Make a wheelhouse in the account's bucket: resolved once for an installation, each file uploaded once.

Stopped halfway and run again, it continues: what pip resolved is in the bucket, and so is each file that was uploaded.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shoestring_core.wheelhouse import MIN_DRIVERS, WheelFile, Wheelhouse, file_key, manifest_key

from shoestring_worker.providers.ec2.account import wheels
from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.steps import Steps
from shoestring_worker.providers.ec2.account.wheels import Contents, Pinned

PYTHON = "3.12"
"""Of Ubuntu 24.04."""
CUDA_RUNTIME = "nvidia-cuda-runtime"
NOT_THERE = {"404", "NoSuchKey", "NotFound"}


@dataclass(frozen=True)
class Place:
    """Where in a bucket. `prefix`: empty, or ends with a slash."""

    region: str
    bucket: str
    prefix: str

    @classmethod
    def read(cls, region: str, location: str) -> Place:
        """Of s3://BUCKET/PREFIX. Raises ValueError."""
        bucket, _, prefix = location.removeprefix("s3://").rstrip("/").partition("/")
        if not location.startswith("s3://") or not bucket:
            raise ValueError(f"SHOESTRING_OBJECT_STORE is {location!r}: a wheelhouse needs s3://BUCKET/PREFIX")
        return cls(region, bucket, f"{prefix}/" if prefix else "")


@dataclass
class WheelhouseMade:
    """`name`: for SHOESTRING_EC2_WHEELHOUSE; "": a dry run that doesn't know it. `bytes`: of all files."""

    name: str = ""
    bytes: int = 0
    files: int = 0
    created: int = 0
    steps: list[str] = field(default_factory=list)


class WheelhouseMaker:
    """
    contents    of the environment
    from_image  the image's Python has all but our own packages; they alone are in it
    """

    def __init__(
        self,
        aws: Aws,
        place: Place,
        report: Callable[[str], None],
        contents: Contents,
        *,
        python: str = PYTHON,
        from_image: bool = False,
        dry_run: bool = False,
    ) -> None:
        self._aws, self._place, self._python, self._from_image = aws, place, python, from_image
        self._contents, self._steps = contents, Steps(report, dry_run)

    def make(self) -> WheelhouseMade:
        """Raises AwsError, WheelsMissing."""
        with tempfile.TemporaryDirectory(prefix="shoestring-wheels-") as folder:
            return self._make(Path(folder))

    def _make(self, folder: Path) -> WheelhouseMade:
        steps = self._steps
        own = wheels.make_own_wheels(folder, self._contents.own)
        pinned = [] if self._from_image else self._resolve(folder, own)
        files = [self._store_own(wheel) for wheel in own]
        for number, wheel in enumerate(pinned, 1):
            files.append(self._store(folder, wheel, f"{number}/{len(pinned)}"))
        made = WheelhouseMade(steps=steps.told)
        if None not in files:
            manifest = self._manifest([file for file in files if file is not None], pinned)
            made.name, made.bytes, made.files = manifest.name, manifest.size, len(manifest.files)
            key = manifest_key(manifest.name)

            def put() -> str:
                self._put(key, manifest.as_bytes())
                return manifest.name

            what = f"manifest of {len(manifest.files)} wheels, {size(manifest.size)}"
            steps.ensure(what, manifest.name if self._size(key) is not None else None, put)
        made.created = steps.created
        return made

    def _manifest(self, files: list[WheelFile], pinned: list[Pinned]) -> Wheelhouse:
        cuda = next((wheel.version for wheel in pinned if wheel.project == CUDA_RUNTIME), "")
        return Wheelhouse(
            python=self._python,
            cuda=".".join(cuda.split(".")[:2]),
            min_driver=MIN_DRIVERS.get(cuda.partition(".")[0], 0),
            from_image=self._from_image,
            files=tuple(files),
        )

    def _resolve(self, folder: Path, own: list[Path]) -> list[Pinned]:
        """What pip resolved for this installation, the first time that it was asked."""
        inputs = [self._python, *self._contents.wanted, *map(_sha256, own), *sorted(wheels.installed())]
        key = f"wheelhouse/resolved/{hashlib.sha256(chr(10).join(inputs).encode()).hexdigest()}"
        if self._size(key) is None:
            self._steps.report(f"pip resolves the environment for Python {self._python} on Linux")
            found = wheels.resolve(self._contents.wanted, self._python, folder)
            if self._steps.dry_run:
                return found
            self._put(key, json.dumps([asdict(wheel) for wheel in found]).encode())
        answer = self._aws.read("s3", self._place.region, "get_object", **self._object(key))
        return [Pinned(**each) for each in json.loads(answer["Body"].read())]

    def _store_own(self, wheel: Path) -> WheelFile | None:
        return self._ensure(wheel.name, _sha256(wheel), f"{wheel.name} (this installation's)", lambda: wheel)

    def _store(self, folder: Path, wheel: Pinned, number: str) -> WheelFile | None:
        what = f"{number} {wheel.project} {wheel.version}"
        return self._ensure(wheel.filename, wheel.sha256, what, lambda: wheels.fetch(wheel, self._python, folder))

    def _ensure(self, name: str, sha256: str, what: str, fetch: Callable[[], Path]) -> WheelFile | None:
        """A file in the bucket; None in a dry run that would upload it."""
        key = file_key(sha256)

        def upload() -> str:
            path = fetch()
            self._aws.upload(self._place.region, self._place.bucket, self._place.prefix + key, path)
            uploaded = size(path.stat().st_size)
            path.unlink()
            return uploaded

        there = self._size(key)
        if self._steps.ensure(what, None if there is None else size(there), upload) is None:
            return None
        there = self._size(key) if there is None else there
        return None if there is None else WheelFile(name=name, bytes=there, sha256=sha256)

    def _size(self, key: str) -> int | None:
        """None: there is no such object."""
        try:
            return int(self._aws.read("s3", self._place.region, "head_object", **self._object(key))["ContentLength"])
        except AwsError as error:
            if error.code in NOT_THERE:
                return None
            raise

    def _put(self, key: str, content: bytes) -> None:
        self._aws.write("s3", self._place.region, "put_object", Body=content, **self._object(key))

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._place.bucket, "Key": self._place.prefix + key}


def size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
