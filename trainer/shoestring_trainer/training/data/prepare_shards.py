# SPDX-License-Identifier: Apache-2.0
"""Pack labelled images into numbered tar shards, which WebDataset reads too, with an index beside them.

The bytes depend on the images and the options alone, whatever the number of processes and however often this was
interrupted: which images a shard holds is known before the first is written, a shard gets its name when it is complete,
and its rows of the index are kept until all are. Does not import torch.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import re
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from shoestring_core.wording.units import counted

from shoestring_trainer.processes import die_with_parent
from shoestring_trainer.training.data.image_files import ignored_pillow_warnings
from shoestring_trainer.training.data.image_index import ImageIndex, validate_classes
from shoestring_trainer.training.data.shard_folder import open_shard_folder, read_earlier_index, replace_file
from shoestring_trainer.training.data.shard_index import SAMPLE, count_labels, map_samples, sample_key, verify_shard
from shoestring_trainer.training.data.shard_list import (
    INDEX_FILE,
    SAMPLES_FILE,
    Shard,
    ShardIndex,
    Split,
    has_shard_index,
)
from shoestring_trainer.training.data.shard_parts import (
    SOURCES_FILE,
    Part,
    part_file,
    read_part,
    restore_parts,
    source_digest,
    write_part,
)
from shoestring_trainer.training.data.shard_plan import (
    PrepareOptions,
    ShardPlan,
    plan_digest,
    plan_shards,
)
from shoestring_trainer.training.data.stored_image import store_image
from shoestring_trainer.training.errors import DataError, UserError

CLASSES_FILE = "classes.txt"


@dataclass(frozen=True)
class Progress:
    """Shards and images that are packed, of how many; `at_start`: images that an earlier run had packed."""

    shards: int
    total_shards: int
    images: int
    total_images: int
    at_start: int


@dataclass(frozen=True)
class _Work:
    """What the processes of the pool inherit by fork."""

    sources: dict[Split, ImageIndex]
    folder: Path
    parts: Path
    options: PrepareOptions


_work: _Work
_ESCAPES = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}


def prepare_shards(
    sources: dict[Split, ImageIndex],
    folder: Path,
    options: PrepareOptions,
    processes: int,
    report: Callable[[Progress], None],
    log: Callable[[str], object] = lambda _: None,
) -> ShardIndex:
    """Write the shards of `sources` into a folder, or those that are missing, and verify all of them.

    A shard is packed again, and `log` told so, if a file of its images has changed since.

    Raises DataError or UserError, with what to do.
    """
    for images in sources.values():
        validate_classes(images)
    plans, digest = plan_shards(sources, options), plan_digest(sources, options)
    try:
        with (
            open_shard_folder(folder, digest) as parts,
            _process_pool(_Work(sources, folder, parts, options), processes, len(plans)) as pool,
        ):
            index = read_earlier_index(folder) if has_shard_index(folder) else None
            if _discard_changed(pool, plans, folder, parts, index, log):
                index = None
            if index is None:
                _pack(pool, plans, parts, report)
                index = _write_samples(folder, parts, plans, sources, options, digest)
            _verify(pool, sources, plans, folder, parts, index)
            replace_file(folder / CLASSES_FILE, "".join(f"{name}\n" for name in index.classes).encode())
            replace_file(folder / INDEX_FILE, index.model_dump_json(indent=1).encode())
        shutil.rmtree(parts)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that packs images was killed, perhaps for want of memory; run the same command again, with "
            "fewer --processes: it goes on where it stopped"
        ) from error
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; mend that and run the same command again: it goes on where "
            "it stopped"
        ) from error
    return index


@contextmanager
def _process_pool(work: _Work, processes: int, shards: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that die with this one. After an error, those that are at work end their shard; no other is begun."""

    def begin(parent: int) -> None:
        global _work
        die_with_parent(parent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all: the parent alone ends the pool
        _work = work

    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(min(processes, shards), mp_context=context, initializer=begin, initargs=(os.getpid(),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _discard_changed(
    pool: ProcessPoolExecutor, plans: Sequence[ShardPlan], folder: Path, parts: Path, index: ShardIndex | None,
    log: Callable[[str], object],
) -> bool:  # fmt: skip
    """Forget the shards whose images have changed since they were packed; return whether there are any."""
    packed = index.shards if index else [part.shard for plan in plans if (part := read_part(parts, plan.name))]
    known = {shard.name: shard.source_sha256 for shard in packed if shard.source_sha256}
    earlier = [plan for plan in plans if plan.name in known]
    if earlier:
        images = counted(sum(len(plan.members) for plan in earlier), "image")
        log(f"comparing the files of {images} with those that {counted(len(earlier), 'shard')} were made from")
    digests = pool.map(_digest_of_sources, earlier)
    changed = [plan.name for plan, digest in zip(earlier, digests, strict=True) if digest != known[plan.name]]
    if changed:
        _discard(changed, plans, folder, parts, index)
        more = f" and {counted(len(changed) - 1, 'other shard')}" if len(changed) > 1 else ""
        log(f"images have changed since they were packed into {changed[0]}{more}: packing them again")
    return bool(changed)


def _digest_of_sources(plan: ShardPlan) -> str:
    with ignored_pillow_warnings():
        return source_digest(_work.sources[plan.split], plan.members)


def _discard(
    shards: Sequence[str], plans: Sequence[ShardPlan], folder: Path, parts: Path, index: ShardIndex | None
) -> None:  # fmt: skip
    """Let these shards be written anew, and the index of a folder that was complete."""
    if has_shard_index(folder) and index:
        with suppress(DataError):  # without its list of samples, all shards are
            restore_parts(folder, parts, plans, index, map_samples(folder, index))
    for name in shards:
        part_file(parts, name).unlink(missing_ok=True)
    (folder / INDEX_FILE).unlink(missing_ok=True)


def _pack(
    pool: ProcessPoolExecutor, plans: Sequence[ShardPlan], parts: Path, report: Callable[[Progress], None]
) -> None:
    """Write the shards that have no part yet."""
    missing = [plan for plan in plans if read_part(parts, plan.name) is None]
    total, to_do = (sum(len(plan.members) for plan in some) for some in (plans, missing))
    shards, images = len(plans) - len(missing), total - to_do
    report(Progress(shards, len(plans), images, total, total - to_do))
    futures = {pool.submit(write_shard, plan): plan for plan in missing}
    for future in as_completed(futures):
        future.result()
        shards, images = shards + 1, images + len(futures[future].members)
        report(Progress(shards, len(plans), images, total, total - to_do))


def write_shard(plan: ShardPlan) -> None:
    """Write one shard and its part, in a process of the pool. Raises DataError for a damaged image."""
    source, options = _work.sources[plan.split], _work.options
    digest = _digest_of_sources(plan)  # before they are packed: one that changes meanwhile is noticed the next time
    rows: list[tuple[int, int, int, int, int]] = []
    sources, skipped = [], []
    draft, file = _work.folder / f"{plan.name}.tmp", _work.folder / plan.name
    with draft.open("w+b") as opened, ignored_pillow_warnings():
        with tarfile.open(fileobj=opened, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for member in plan.members:
                try:
                    image = store_image(
                        partial(source.open, member), source.path(member), options.side, options.quality
                    )
                except DataError as error:
                    if not options.skip_damaged:
                        raise
                    skipped.append(str(error))
                    continue
                key, label = sample_key(plan.first + len(rows)), source.labels[member]
                rows.append((tar.offset + tarfile.BLOCKSIZE, len(image.content), label, image.width, image.height))
                sources.append(f"{plan.name}/{key}.{image.extension}\t{_escaped(source.names[member])}")
                _add(tar, f"{key}.{image.extension}", image.content)
                _add(tar, f"{key}.cls", str(label).encode())
        opened.flush()
        os.fsync(opened.fileno())
        opened.seek(0)
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        size = os.fstat(opened.fileno()).st_size
    draft.replace(file)
    shard = Shard(
        name=plan.name, split=plan.split, first=plan.first, images=len(rows), bytes=size, sha256=sha256,
        source_sha256=digest,
    )  # fmt: skip
    write_part(_work.parts, Part(shard=shard, rows=rows, sources=sources, skipped=skipped))


def _escaped(name: str) -> str:
    """Return a name as a field of a line of tab-separated values."""
    return re.sub(r"[\\\t\n\r]", lambda found: _ESCAPES[found[0]], name)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _write_samples(
    folder: Path, parts: Path, plans: Sequence[ShardPlan], sources: dict[Split, ImageIndex], options: PrepareOptions,
    digest: str,
) -> ShardIndex:  # fmt: skip
    """Write what lies beside the shards, and return the index, which is to be written last."""
    read = [part for plan in plans if (part := read_part(parts, plan.name))]
    rows = np.array([(number, *row) for number, part in enumerate(read) for row in part.rows], SAMPLE)
    content = io.BytesIO()
    np.save(content, rows, allow_pickle=False)
    replace_file(folder / SAMPLES_FILE, content.getvalue())
    classes = next(iter(sources.values())).classes
    replace_file(folder / SOURCES_FILE, "".join(f"{line}\n" for part in read for line in part.sources).encode())
    shards, skipped = [part.shard for part in read], [line for part in read for line in part.skipped]
    class_images = {split: count_labels(rows, shards, split, len(classes)) for split in sources}
    for split, counts in class_images.items():
        if 0 in counts:
            raise DataError(
                f'the class "{classes[counts.index(0)]}" has no {split} image that can be decoded; mend some or remove '
                f"the class, and give another folder for the shards. One that is damaged: {skipped[0]}"
            )
    return ShardIndex(
        plan=digest, side=options.side, quality=options.quality, classes=classes, shards=shards,
        class_images=class_images, skipped=skipped,
        samples_sha256=hashlib.sha256(content.getvalue()).hexdigest(),
    )  # fmt: skip


def _verify(
    pool: ProcessPoolExecutor, sources: dict[Split, ImageIndex], plans: Sequence[ShardPlan], folder: Path, parts: Path,
    index: ShardIndex,
) -> None:  # fmt: skip
    """Read every shard again, and count. Raises DataError for what isn't as it should be, and lets it be written anew.

    What has been left out was damaged; whatever else the source holds must be there.
    """
    try:
        rows = map_samples(folder, index)
    except DataError as error:
        (folder / INDEX_FILE).unlink(missing_ok=True)
        raise DataError(f"{error} by running the same command") from error
    numbers = range(len(index.shards))
    checks = [pool.submit(verify_shard, folder, index.shards[n], np.array(rows[rows["shard"] == n])) for n in numbers]
    problems = {shard.name: check.result() for shard, check in zip(index.shards, checks, strict=True)}
    if damaged := [name for name, problem in problems.items() if problem]:
        _discard(damaged, plans, folder, parts, index)
        others = f", nor {counted(len(damaged) - 1, 'other shard')}" if len(damaged) > 1 else ""
        raise DataError(
            f"the shard {folder / damaged[0]} isn't as it was written{others}: {problems[damaged[0]]}; run the same "
            "command again, which writes what is missing"
        )
    counts = {split: count_labels(rows, index.shards, split, len(index.classes)) for split in sources}
    stored, given = sum(map(sum, counts.values())), sum(map(len, sources.values()))
    if counts != index.class_images or stored + len(index.skipped) != given:
        _discard([], plans, folder, parts, index)
        raise DataError(
            f"{folder / INDEX_FILE} counts other images than the {stored:,} in its shards, made from {given:,}; run "
            "the same command again, which writes them anew"
        )
