# SPDX-License-Identifier: Apache-2.0
"""`shoestring login`: save the service to talk to and an API key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from shoestring_core.exit_codes import ExitCode
from shoestring_core.tls import BadCertificate, read_certificates
