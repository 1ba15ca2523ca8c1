# SPDX-License-Identifier: Apache-2.0
"""Errors in a job spec that comes from a file name the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from shoestring.cli.spec_arguments import InvalidSpecFile, errors_by_line, spec_tree
from shoestring.client import ServiceError
from shoestring_core import rest, spec
from shoestring_core.errors import InvalidSpec
from shoestring_core.exit_codes import ExitCode


def refused(source: object) -> ServiceError:
    """What the service answers to a spec."""
    with pytest.raises(InvalidSpec) as refusal:
        spec.parse(source)  # type: ignore[arg-type]
    error = refusal.value
    return ServiceError(
        rest.ProblemDocument(
            type="/problems/invalid-spec", title=error.title, status=422, detail=str(error), code=error.code,
            hint=None, retryable=False, errors=error.problems,
        )
    )  # fmt: skip


def test_errors_of_a_file_begin_with_the_file_and_the_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("recipe: digits/quickstart\nresources:\n  gpuu: 2\nparams: {lr: -1}\n")
    tree = spec_tree(str(file), None, None)
    with pytest.raises(InvalidSpecFile) as told, errors_by_line(tree):
        raise refused(tree)
    assert [sentence.split(" ")[:2] for sentence in told.value.sentences] == [
        [f"{file}:4:", "params.lr:"],
        [f"{file}:3:", "resources.gpuu:"],
    ]
    assert told.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("content", [b"recipe: x\n b: 1", b'{"recipe": "x",\n "y"}'])
def test_a_slip_in_the_syntax_names_file_and_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "job.yml"
    file.write_bytes(content)
    tree = spec_tree(None, None, file)
    with pytest.raises(InvalidSpecFile) as told, errors_by_line(tree):
        raise refused(tree)
    (sentence,) = told.value.sentences
    assert sentence.startswith(f"{file}:2: Not valid ")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(b"\xff\xfea\0")
    with pytest.raises(InvalidSpecFile) as told:
        spec_tree(None, None, file)
    assert told.value.sentences[0].startswith(f"{file}: ")


def test_errors_of_arguments_name_the_field_alone() -> None:
    tree = spec_tree("digits/quickstart", ["lr=-1"], None)
    with pytest.raises(ServiceError) as told, errors_by_line(tree):
        raise refused(tree)
    assert told.value.problem.errors[0].sentence.startswith("params.lr: ")
