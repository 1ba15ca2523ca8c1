# SPDX-License-Identifier: Apache-2.0
"""The HTTP service: REST, the agent protocol and the live stream."""

from __future__ import annotations

VERSION = "0.1.0"
