# SPDX-License-Identifier: Apache-2.0
"""How `shoestring up` starts, trains and ends; and what the terminal's environment says to other programs keeps nobody
from training."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from tests.e2e import environments


def test_in_an_environment_hostile_in_every_way_a_service_is_ready_trains_a_job_and_ends_with_its_terminal(
    tmp_path: Path,
) -> None:
    all_but_another_user_and_mask = [one for one in environments.ENVIRONMENTS if one not in ("nobody", "umask-077")]
    environments.prove(environments.combined(all_but_another_user_and_mask), tmp_path)


def test_each_environment_is_proven_in_one_group_by_the_soak_tests() -> None:
    assert sorted(chain(*environments.GROUPS)) == sorted(environments.ENVIRONMENTS)
