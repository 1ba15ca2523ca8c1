# SPDX-License-Identifier: Apache-2.0
"""The error of a data set that can't be copied, apart from the S3 library, which most machines don't load."""

from __future__ import annotations

SCHEME = "s3://"


class DataUnavailable(Exception):
    """The data can't be had. `permanent`: not by trying again either; somebody has to change something first."""

    def __init__(self, message: str, *, permanent: bool = True) -> None:
        super().__init__(message)
        self.permanent = permanent
