# SPDX-License-Identifier: Apache-2.0
"""Tell training and held-out data apart by the names of folders and shards: one list of words for both.

What the names leave open is refused, with both readings: a guess could train on what is held out, or drop a class.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from shoestring_core.wording.units import counted

Role = Literal["train", "val", "test"]


class LayoutError(Exception):
    """Folders or files that can't be told apart, or lack what a data set needs. The message says what to do."""


_ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("train", "training", "trainset", "trainingset", "trn", "trainval"), "train"),
    **dict.fromkeys(
        ("val", "valid", "validation", "validate", "valset", "validset", "validationset", "dev", "devset", "devel",
         "eval", "evaluation", "evalset", "evaluationset", "holdout", "heldout"), "val",
    ),
    **dict.fromkeys(("test", "testing", "testset", "testingset", "tst"), "test"),
}  # fmt: skip
_HELD_OUT = re.compile(r"h[eo]ld[-_. ]out")
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Splits:
    """What is trained on, what is held out for validation (nothing: a share of the former), and what isn't used."""

    train: list[Path]
    val: list[Path]
    unused: list[Path]


def folder_role(folder: Path) -> Role | None:
    """Return what a folder's whole name says it is for, such as `train`, `Validation` or `test_set`."""
    return _ROLES.get("".join(_WORD.findall(folder.name.lower())))


class FolderView(Protocol):
    """How folders are read where the data lie."""

    def below(self, folder: Path) -> Sequence[Path]:
        """The sub-folders of a folder, by name, without hidden ones."""

    def beside(self, folder: Path) -> Sequence[Path]:
        """The other folders that lie where this one does; none if that may not be read."""


def find_splits(folder: Path, view: FolderView, has_data: Callable[[Path], bool]) -> Splits:
    """Return the folders below `folder`, or beside it, to train and to validate on; `has_data` says which count.

    Raises LayoutError if it can't be known.
    """
    if splits := split_folders(folder, view.below(folder), has_data):
        return splits
    if folder_role(folder) != "train":
        return Splits([folder], [], [])
    return siblings_of(folder, view.beside(folder))


def split_folders(folder: Path, children: Sequence[Path], has_data: Callable[[Path], bool]) -> Splits | None:
    """Return which of a folder's sub-folders, `children`, is which; None if the folder itself is what is trained on.

    has_data  whether a sub-folder holds what could be trained on
    raises    LayoutError for sub-folders of which some are splits by their names, and it can't be known of the others
    """
    roles = {child: role for child in children if (role := folder_role(child))}
    train = [child for child, role in roles.items() if role == "train"]
    held_out = [child for child, role in roles.items() if role != "train"]
    if not roles or (folder_role(folder) == "train" and not (train and held_out)):
        return None
    others = [child for child in children if child not in roles and has_data(child)]
    if len(train) > 1:
        raise LayoutError(
            f"{_names(train)} in {folder} could each be what to train on; give the path of one of them as data.train"
        )
    if others:
        raise LayoutError(
            f"{_names(list(roles))} in {folder} can be parts of a data set, of which {_names(others)} would be none, "
            "or classes like the others. If they are parts, give the path of the one to train on as data.train; if "
            f"they are classes, put all of them into a folder {folder}/train and give that"
        )
    if not train:
        raise LayoutError(
            f"the folders {_names(held_out)} in {folder} look like dataset splits, not classes; name the one to train "
            "on train, with one folder per class in it. If they are classes, put them into a folder "
            f"{folder}/train and give that"
        )
    return choose_held_out(train, held_out, roles)


def choose_held_out(train: list[Path], held_out: list[Path], roles: Mapping[Path, Role]) -> Splits:
    """Return the splits with validation data, or else test data, for validation; test data beside it is never read."""
    for role in ("val", "test"):
        chosen = [path for path in held_out if roles[path] == role]
        if len(chosen) > 1:
            raise LayoutError(
                f"{_names(chosen)} in {chosen[0].parent} could each be what to validate on; keep one of them there"
            )
        if chosen:
            return Splits(train, chosen, [path for path in held_out if path not in chosen])
    return Splits(train, [], [])


def siblings_of(train: Path, siblings: Sequence[Path]) -> Splits:
    """Return the splits for a folder of training data, given by its path: validation data may lie beside it."""
    roles = {path: role for path in siblings if (role := folder_role(path)) and role != "train"}
    return choose_held_out([train], list(roles), roles)


def split_shards(shards: Sequence[Path]) -> Splits:
    """Return which shards of a folder are which, by the words in their names; all are trained on if none has such a
    word. Raises LayoutError for names that leave it open.
    """
    roles = _shard_roles(shards)
    by_role = {role: [shard for shard in shards if roles[shard] == role] for role in ("train", "val", "test", None)}
    train, unknown = by_role["train"], by_role[None]
    known = [shard for shard in shards if roles[shard]]
    if not known:
        return Splits(list(shards), [], [])
    folder = known[0].parent
    if unknown:
        raise LayoutError(
            f"{known[0].name} in {folder} says in its name what it is for, and {unknown[0].name} doesn't: it could be "
            "for training or held out. Put train, val or test into its name, or give the shards to train on by a "
            f"pattern, such as data.train={folder}/train-{{000..127}}.tar"
        )
    if not train:
        raise LayoutError(
            f"by their names, such as {known[0].name}, all shards in {folder} are held out, and none is to train on. "
            f"To train on them, give them by a pattern, such as data.train={folder}/test-{{000..127}}.tar"
        )
    held_out = by_role["val"] or by_role["test"]
    return Splits(train, held_out, by_role["test"] if by_role["val"] else [])


class ShardView(FolderView, Protocol):
    def shards(self, folder: Path) -> Sequence[Path]:
        """The tar files in a folder, by name."""


def find_shards(folder: Path, view: ShardView) -> Splits:
    """Return the shards of a folder to train and to validate on. Raises LayoutError."""
    folders = find_splits(folder, view, lambda place: bool(view.shards(place)))
    if folders.train == [folder] and not folders.val:
        return split_shards(_require_shards(folder, view))
    if folders.train != [folder] and (beside := view.shards(folder)):
        raise LayoutError(
            f"{folder} holds shards, such as {beside[0].name}, and the folder {folders.train[0].name}: either could be "
            "what to train on; give the path of the right one as data.train"
        )
    train, val = (
        [shard for place in part for shard in _require_shards(place, view)] for part in (folders.train, folders.val)
    )
    return Splits(train, val, folders.unused)


def _require_shards(folder: Path, view: ShardView) -> Sequence[Path]:
    if not (shards := view.shards(folder)):
        raise LayoutError(f"{folder} holds no .tar file; give the folder of the shards, or use format: imagefolder")
    return shards


def _shard_roles(shards: Sequence[Path]) -> dict[Path, Role | None]:
    words = {shard: set(_WORD.findall(_HELD_OUT.sub("holdout", shard.stem.lower()))) & set(_ROLES) for shard in shards}
    if any(len(_roles(its_words)) > 1 for its_words in words.values()):
        in_all = set.intersection(*words.values())  # as part of the data set's name, which tells nothing
        words = {shard: its_words - in_all for shard, its_words in words.items()}
    for shard, its_words in words.items():
        if len(_roles(its_words)) > 1:
            raise LayoutError(
                f"the name of {shard} says both {' and '.join(sorted(its_words))}: it could be for training or held "
                "out; keep one of the words"
            )
    return {shard: next(iter(_roles(its_words)), None) for shard, its_words in words.items()}


def _roles(words: set[str]) -> set[Role]:
    return {_ROLES[word] for word in words}


MAX_CLASS_NAME = 255
_ALTERS_LINES = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, ends of lines, and marks that change the direction of writing."""


def require_class_names(names: Iterable[str], place: Path) -> None:
    """Raise LayoutError for names that logs, pages and terminals can't show in a line, and for one in two spellings."""
    seen: dict[str, str] = {}
    for name in names:
        if not name.strip():
            raise LayoutError(f"{place} has a class whose name is blank, {name!a}; rename it")
        if len(name) > MAX_CLASS_NAME:
            raise LayoutError(
                f"{place} has a class whose name has {counted(len(name), 'character')}, {name[:40]!a}…; "
                f"{MAX_CLASS_NAME} are allowed: rename it"
            )
        if _ALTERS_LINES.search(name):
            raise LayoutError(
                f"{place} has the class {name!a}, whose name has characters that can't be shown in a line (control "
                "characters, ends of lines or direction marks); rename it"
            )
        if (other := seen.setdefault(unicodedata.normalize("NFC", name), name)) != name:
            raise LayoutError(f"{place} has a class {name} twice: {spellings(name, other)}")


def find_twin(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is `name` in another Unicode spelling, or in other upper and lower case."""
    return next((other for other in names if other != name and _fold(other) == _fold(name)), None)


def spellings(name: str, other: str) -> str:
    """Say how two names of one class differ."""
    same_text = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
    how = "in two Unicode spellings, of which one is decomposed" if same_text else "in upper and lower case"
    return f"it is {name!a} and {other!a}, {how}; rename one"


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _names(paths: Sequence[Path]) -> str:
    names = [path.name for path in paths[:4]]
    return ", ".join(names) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
