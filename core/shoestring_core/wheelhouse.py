# SPDX-License-Identifier: Apache-2.0
"""A wheelhouse: the wheels of a machine's Python environment, in the object store, each by its SHA-256.

    wheelhouse/files/SHA256       a wheel, whichever wheelhouses have it
    wheelhouse/manifests/SHA256   the manifest, as `Wheelhouse.as_bytes` has it: its SHA-256 names the whole environment

Machines get that name in their user data, and verify the manifest by it and each wheel by the manifest.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_MANIFEST_BYTES = 1 << 20
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

MIN_DRIVERS = {"12": 525, "13": 580}
"""Major version of NVIDIA's driver that a CUDA of this major version needs on Linux: docs.nvidia.com/deploy/
cuda-compatibility, "Minor Version Compatibility"."""


class WheelFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*\.whl$")]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Wheelhouse(BaseModel):
    """The manifest.

    python      version of Python that the wheels are for, such as 3.12
    cuda        version of CUDA in them; "": none
    min_driver  major version of NVIDIA's driver that they need; 0: none
    from_image  the image's own Python has all packages that aren't among the files
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    python: Annotated[str, Field(pattern=r"^3\.\d+$")]
    cuda: str = ""
    min_driver: int = 0
    from_image: bool = False
    files: tuple[WheelFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def name(self) -> str:
        return hashlib.sha256(self.as_bytes()).hexdigest()

    def as_bytes(self) -> bytes:
        """The same for the same content: files are in the order of their names."""
        ordered = tuple(sorted(self.files, key=lambda file: file.name))
        return self.model_copy(update={"files": ordered}).model_dump_json().encode()


def manifest_key(name: str) -> str:
    return f"wheelhouse/manifests/{name}"


def file_key(sha256: str) -> str:
    return f"wheelhouse/files/{sha256}"
