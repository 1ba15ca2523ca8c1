# SPDX-License-Identifier: Apache-2.0
"""The run itself keeps its promises: nothing is skipped in silence, and what measures time runs alone."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.servers import PATIENCE_S

ROOT = Path(__file__).parents[1]


def test_a_skipped_test_fails_the_run(tmp_path: Path) -> None:
    outcome = run(tmp_path, "import pytest\ndef test_left_out():\n    pytest.skip('no time')\ndef test_fine(): pass")
    assert outcome.returncode == 1
    assert "skipped though not marked gpu, which fails the run: test_planted.py::test_left_out" in outcome.stdout


def test_a_gpu_test_may_be_skipped_where_there_is_none(tmp_path: Path) -> None:
    outcome = run(tmp_path, "import pytest, torch\n@pytest.mark.gpu\ndef test_fast(): assert torch.cuda.is_available()")
    assert outcome.returncode == 0, outcome.stdout


def test_the_summary_counts_each_database(tmp_path: Path) -> None:
    outcome = run(tmp_path, "def test_stored(database_url): assert database_url")
    assert outcome.returncode == 0, outcome.stdout
    counts = dict(line.split() for line in outcome.stdout.splitlines() if len(line.split()) == 2)
    assert (counts["sqlite"], counts["postgresql"], counts["neither"]) == ("1", "1", "0")


def test_a_test_marked_alone_overlaps_no_other(tmp_path: Path) -> None:
    """Each test notes when it began and ended; only the two unmarked ones may have been open together."""
    source = """
        import pathlib, threading, time, pytest

        NOTES = pathlib.Path(__file__).parent
        def note(name):
            begin = time.monotonic()
            threading.Event().wait(0.3)
            (NOTES / f"{name}.txt").write_text(f"{begin} {time.monotonic()}")

        @pytest.mark.alone
        def test_alone_1(): note("alone1")
        def test_beside_1(): note("beside1")
        def test_beside_2(): note("beside2")
        @pytest.mark.alone
        def test_alone_2(): note("alone2")
    """
    outcome = run(tmp_path, textwrap.dedent(source), "-n", "2", "--dist", "load")
    assert outcome.returncode == 0, outcome.stdout
    spans = {note.stem: [float(word) for word in note.read_text().split()] for note in tmp_path.glob("*.txt")}
    assert len(spans) == 4
    for name in ("alone1", "alone2"):
        begin, end = spans.pop(name)
        assert all(other_end <= begin or other_begin >= end for other_begin, other_end in spans.values())


def run(folder: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest on one planted file, with this suite's configuration and plugins."""
    (folder / "test_planted.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", ROOT / "pyproject.toml"]
    return subprocess.run(
        [*command, "--rootdir", folder, "-p", "no:cacheprovider", *options, folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
