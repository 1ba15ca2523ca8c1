# SPDX-License-Identifier: Apache-2.0
"""The witness of the other tests notices when it sees nothing more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import witness


def test_a_watch_that_can_look_no_more_fails_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(_: witness.Watch) -> set[str]:
        raise ValueError("not what /proc shows")

    monkeypatch.setattr(witness.Watch, "_look", look)
    with pytest.raises(ValueError, match="not what /proc shows"), witness.Watch(tmp_path, every_s=0.0) as watch:
        watch._thread.join()


@pytest.mark.parametrize(
    ("folder", "generation"), [("m/gen/3", 3), ("m/gen/12 (deleted)", 12), ("m", None), ("/", None)]
)
def test_the_generation_of_a_rank_is_told_by_its_folder(folder: str, generation: int | None) -> None:
    assert witness.generation_of(Path(folder)) == generation
