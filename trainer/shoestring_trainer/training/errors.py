# SPDX-License-Identifier: Apache-2.0
"""Errors of a training process, and the kinds by which the server decides. Free of torch, so that a failing import is
classified too."""

from __future__ import annotations

import errno
from typing import Literal

from shoestring_core.errors import InvalidSpec

Kind = Literal["user_code", "out_of_memory", "nan", "data", "hardware", "infrastructure"]


class TrainerError(Exception):
    """An error whose message is for the user: what is wrong and what to do."""

    kind: Kind = "user_code"


class UserError(TrainerError):
    """The task asks for something that cannot be done."""


class HookError(UserError):
    """A user's hook raised an error, or gave what can't be used."""


class DataError(TrainerError):
    """A data set or checkpoint is missing, damaged or not the right one."""

    kind: Kind = "data"


class MissingGpuError(TrainerError):
    """The machine should have a GPU for this rank, and PyTorch can't use it."""

    kind: Kind = "hardware"


class NonFiniteError(TrainerError):
    """The loss or the weights are no longer finite. `since`: the first step with numbers that are not finite."""

    kind: Kind = "nan"

    def __init__(self, message: str, since: int) -> None:
        super().__init__(message)
        self.since = since


EXPLAINED = (TrainerError, InvalidSpec)
"""Errors whose message says what is wrong and what to do."""


def explain_os_error(error: OSError) -> str:
    """The file, if one is named, and what the system says."""
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type where it has none, or can't say it."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - a user's exception class may raise anything
        lines = []
    return lines[0] if lines else type(error).__name__


_OUT_OF_MEMORY = (
    "can't allocate memory", "out of memory", "not enough memory", "cannot allocate memory",
    "killed by signal: killed", "killed by signal: bus error",  # a process that decodes images
)  # fmt: skip
_BROKEN_GPU = (
    "uncorrectable ecc error", "uncorrectable nvlink error", "nvlink or a hardware error", "gpu is lost",
    "fallen off the bus", "unable to determine the device handle", "device(s) is/are busy or unavailable",
)  # fmt: skip
"""Words of CUDA (cudaErrorECCUncorrectable, NvlinkUncorrectable, Contained, DevicesUnavailable) and of NVML."""
_COLLECTIVES = ("gloo", "nccl", "tcpstore", "process group")
_LOST_PEER = (
    *_COLLECTIVES, "connection closed by peer", "connection reset by peer", "connection refused", "broken pipe",
    "timed out waiting",
)  # fmt: skip


def is_lost_peer(error: BaseException) -> bool:
    """Return whether a collective failed, by the words of torch.distributed and its backends, not of networks."""
    by_collective = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _COLLECTIVES)
    return type(error).__name__.startswith("Dist") or by_collective


def classify_error(error: BaseException, *, has_peers: bool) -> Kind:
    """Return the kind of an exception that ended a rank. One without peers can't have lost one."""
    if isinstance(error, TrainerError):
        return error.kind
    text = str(error).lower()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out_of_memory"
    if isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY):
        return "out_of_memory"
    if isinstance(error, RuntimeError) and any(sign in text for sign in _BROKEN_GPU):
        return "hardware"
    # torch's DistError family, and the plain RuntimeError by which gloo reports that a peer is gone
    lost_peer = isinstance(error, RuntimeError) and any(sign in text for sign in _LOST_PEER)
    if has_peers and (type(error).__name__.startswith("Dist") or lost_peer):
        return "infrastructure"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
        return "infrastructure"
    return "user_code"


def error_message(error: BaseException, kind: Kind) -> str:
    """Return the message for the user: what happened and what to do next."""
    if isinstance(error, EXPLAINED):
        return str(error)
    what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    match kind:
        case "out_of_memory":
            return f"out of memory ({what}); lower batch_size or the image size, or rent machines with more memory"
        case "infrastructure" if isinstance(error, OSError):
            return f"{what}; free space on this machine's disk or rent one with a larger disk"
        case "infrastructure":
            return f"lost contact with another rank ({what}); the job resumes from its newest checkpoint"
        case _:
            return what
