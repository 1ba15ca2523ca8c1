# SPDX-License-Identifier: Apache-2.0
"""What the terminal's environment says to other programs keeps nobody from training."""

from __future__ import annotations

from pathlib import Path

from tests.e2e import environments


def test_a_job_trains_in_an_environment_that_is_hostile_in_every_way_and_the_service_ends_when_its_terminal_is_closed(
    tmp_path: Path,
) -> None:
    environments.prove(environments.combined(), tmp_path)
