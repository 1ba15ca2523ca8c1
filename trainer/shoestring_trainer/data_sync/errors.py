# SPDX-License-Identifier: Apache-2.0
"""The error of a data set that can't be copied. Does not import the S3 library, which most machines don't need."""

from __future__ import annotations

SCHEME = "s3://"


class DataUnavailable(Exception):
    """The data can't be copied. `permanent`: a retry can't help, the user has to change something first."""

    def __init__(self, message: str, *, permanent: bool = True) -> None:
        super().__init__(message)
        self.permanent = permanent
