# SPDX-License-Identifier: Apache-2.0
"""Whether all shards of a data set are there: those that a pattern names, that an index lists, that numbers imply."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from shoestring_core.data_splits import LayoutError
from shoestring_core.spec import MAX_SHARDS, SHARD_RANGE, count_shards
from shoestring_core.wording.units import counted

SHARD_INDEX = "shards.json"
"""Is in a folder that `shoestring data prepare` has made."""
_NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>\d{1,9})(?:(?P<of>[-_]of[-_])(?P<total>\d{1,9}))?(?P<after>\D*)")
"""The last number of a name, or the last but one where the last is how many there are: train-00012-of-00128.tar."""
MIN_IN_SEQUENCE = 3
"""Fewer shards than this, or than are missing between them, are no sequence: their numbers may be dates or sizes."""


def expand_pattern(pattern: Path, has_file: Callable[[str], bool]) -> list[Path]:
    """Return the shards that a pattern such as /data/train-{000..127}.tar names.

    has_file  whether a file of this name is in the pattern's folder

    Raises LayoutError if one is missing, if there are none, or too many.
    """
    braces = SHARD_RANGE.search(pattern.name)
    if braces is None:
        raise ValueError(f"{pattern} is no pattern of shards")
    if count_shards(braces) > MAX_SHARDS:
        raise LayoutError(f"{pattern.name} names more than {MAX_SHARDS:,} shards; make them larger, or name fewer")
    first, last = braces.groups()
    before, after = pattern.name[: braces.start()], pattern.name[braces.end() :]
    names = [f"{before}{number:0{len(first)}}{after}" for number in range(int(first), int(last) + 1)]
    if missing := [name for name in names if not has_file(name)]:
        lacks = f"{pattern.parent / missing[0]} is missing"
        raise LayoutError(f"{lacks}, one of {len(missing)} that {pattern.name} names; add it")
    if not names:
        raise LayoutError(f"{pattern.name} names no shard; give the smaller number first")
    return [pattern.with_name(name) for name in names]


def require_indexed(folder: Path, sizes: Mapping[str, int], stored: Mapping[str, int | None]) -> None:
    """Raise LayoutError for a shard that is missing or has another size than its index says.

    sizes   bytes of each shard by its name, as the index has them
    stored  bytes of the files that are there; None: that isn't known
    """
    if missing := [name for name in sizes if name not in stored]:
        more = f", and {len(missing) - 1} more of the {counted(len(sizes), 'shard')}" if len(missing) > 1 else ""
        raise LayoutError(f"the shard {folder / missing[0]} is missing{more}; copy what is missing again")
    for name, size in sizes.items():
        found = stored[name]
        if found is not None and found != size:
            raise LayoutError(
                f"the shard {folder / name} has {counted(found, 'byte')} instead of {size:,}: it is truncated or of "
                "another data set; copy it again"
            )


def require_no_gap(shards: Iterable[Path]) -> None:
    """Raise LayoutError if the numbers in the shards' names tell that some are missing."""
    sequences: dict[tuple[Path, str, str, int | None], dict[int, Path]] = defaultdict(dict)
    for shard in shards:
        if match := _NUMBERED.fullmatch(shard.stem):
            total = int(match["total"]) if match["total"] else None
            sequences[shard.parent, match["before"], match["after"], total][int(match["number"])] = shard
    for (*_, total), found in sequences.items():
        first, last = min(found), max(found)
        if total is not None:  # numbered from 0 or from 1
            first, last = (1, total) if total in found else (0, total - 1)
        missing = last - first + 1 - len(found)
        if missing <= 0 or (total is None and len(found) < max(MIN_IN_SEQUENCE, missing)):
            continue
        number = next(number for number in range(first, last + 1) if number not in found)
        raise _gap(found, number, missing, total)


def _gap(found: Mapping[int, Path], number: int, missing: int, total: int | None) -> LayoutError:
    example = found[max(found)]
    folder, numbered = example.parent, _NUMBERED.fullmatch(example.stem)
    assert numbered is not None
    begin, end = numbered.span("number")
    name = f"{example.stem[:begin]}{str(number).zfill(end - begin)}{example.stem[end:]}{example.suffix}"
    if total is not None:
        there = f"{counted(len(found), 'shard')} of the {total:,} that its name tells, such as {example.name}"
    else:
        there = f"the shards {found[min(found)].name} to {example.name}"
    what = f"{name} is missing" if missing == 1 else f"{missing:,} are missing, the first of them {name}"
    return LayoutError(
        f"{folder} holds {there}: {what}. Add what is missing; if it is left out on purpose, rename the others so "
        "that their numbers have no gap"
    )
