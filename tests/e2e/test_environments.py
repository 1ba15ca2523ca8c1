# SPDX-License-Identifier: Apache-2.0
"""How `shoestring up` starts, trains and ends; and what the terminal's environment says to other programs keeps nobody
from training."""

from __future__ import annotations

from pathlib import Path

from tests.e2e import environments


def test_in_an_environment_hostile_in_every_way_a_service_is_ready_trains_a_job_and_ends_with_its_terminal(
    tmp_path: Path,
) -> None:
    environments.prove(environments.combined(), tmp_path)
