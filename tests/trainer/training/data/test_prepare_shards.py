# SPDX-License-Identifier: Apache-2.0
"""Preparing shards: the same bytes however often it is interrupted, nothing dropped in silence, clear refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shoestring_trainer.training.cli.prepare import index_source, print_preparation
from shoestring_trainer.training.data import shard_folder
from shoestring_trainer.training.data.prepare_shards import Progress, prepare_shards
from shoestring_trainer.training.data.shard_index import map_samples, verify_shard
from shoestring_trainer.training.data.shard_list import ShardIndex
from shoestring_trainer.training.data.shard_plan import PrepareOptions
from shoestring_trainer.training.errors import DataError, TrainerError

from tests.servers import PATIENCE_S, until
from tests.trainer.training.data.sample_images import COLOURS, load, save_image
from tests.trainer.training.gangs import PACKAGE_FOLDERS

KILLED_FIVE_TIMES = """
import os, pathlib, signal, sys
from shoestring_trainer.training.data import shard_folder
from shoestring_trainer.training.cli.prepare import index_source
from shoestring_trainer.training.data import prepare_shards as module

source, folder = map(pathlib.Path, sys.argv[1:])
sources = index_source(source, skip=False)
options = module.PrepareOptions(32, 90, 2, False)

def write_shard_and_kill(plan):
    # Each of the three processes writes at most one of the sixteen shards, so that five times leave one to write.
    write_shard(plan)
    os.kill(killed, signal.SIGKILL)
    signal.pause()

write_shard, module.write_shard = module.write_shard, write_shard_and_kill
for _ in range(5):
    if not (child := os.fork()):
        killed = os.getpid()
        module.prepare_shards(sources, folder, options, 3, lambda progress: None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
module.write_shard = write_shard
assert not (folder / "shards.json").exists()
module.prepare_shards(sources, folder, options, 2, lambda progress: None)
assert "torch" not in sys.modules
"""
ENDLESS = """
import os, pathlib, signal, sys
from shoestring_trainer.training.cli import commands
from shoestring_trainer.training.data import prepare_shards

def write_shard(plan):
    pathlib.Path(sys.argv[2], "begun").touch()
    while True:
        signal.pause()

prepare_shards.write_shard = write_shard
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(commands.main(["prepare", *sys.argv[1:3], "--processes", "2", "--images-per-shard", "2"]))
"""
OPTIONS = PrepareOptions(side=32, quality=90, images_per_shard=4, skip_damaged=False)


def prepare(
    source: Path, folder: Path, options: PrepareOptions = OPTIONS, log: Callable[[str], object] = id
) -> ShardIndex:  # fmt: skip
    seen: list[Progress] = []
    index = prepare_shards(index_source(source, skip=options.skip_damaged), folder, options, 1, seen.append, log)
    assert all(one.total_images == len(list(source.rglob("*.png"))) for one in seen)
    return index


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten images of each of three classes, 20 by 24 pixels, but for one that is larger."""
    for number in range(30):
        name, colour = sorted(COLOURS.items())[number % 3]
        save_image(tmp_path / "source" / name / f"{number:02d}.png", colour, number)
    Image.effect_noise((60, 80), 90).save(tmp_path / "source" / "red" / "large.png")
    return tmp_path / "source"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_five_times_it_ends_with_the_same_bytes_as_the_command_in_one_go(source: Path, tmp_path: Path):
    environment = {"PYTHONPATH": os.pathsep.join([*PACKAGE_FOLDERS, str(Path(PACKAGE_FOLDERS[0]).with_name("client"))])}
    killed = [sys.executable, "-c", KILLED_FIVE_TIMES, str(source), str(tmp_path / "killed")]
    subprocess.run(killed, check=True, timeout=PATIENCE_S, env=environment)
    command = [sys.executable, "-m", "shoestring", "data", "prepare", str(source), str(tmp_path / "whole")]
    options = ["--side", "32", "--images-per-shard", "2", "--json"]
    printed = subprocess.run(
        [*command, *options], check=True, capture_output=True, text=True, timeout=PATIENCE_S, env=environment
    )
    assert json.loads(printed.stdout)["images"] == {"train": 31}
    assert "31 of 31 images in 16 of 16 shards" in printed.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_ctrl_c_again_and_again_ends_the_command_while_shards_are_being_packed(source: Path, tmp_path: Path):
    """A terminal sends it to the processes that pack too."""
    command = [sys.executable, "-c", ENDLESS, str(source), str(tmp_path / "shards")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(PACKAGE_FOLDERS)}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            until((tmp_path / "shards" / "begun").exists)

            def ended() -> bool:
                os.killpg(process.pid, signal.SIGINT)
                return process.poll() is not None

            until(ended)
        finally:
            process.kill()
    assert process.returncode == 130


def test_small_images_are_stored_as_they_are_and_large_ones_are_scaled_down(source: Path, tmp_path: Path):
    index = prepare(source, tmp_path / "shards")
    rows = map_samples(tmp_path / "shards", index)
    names = dict(line.split("\t") for line in (tmp_path / "shards" / "sources.tsv").read_text().splitlines())
    for row, (stored, name) in zip(rows, names.items(), strict=True):
        shard, member = stored.split("/")
        content = (tmp_path / "shards" / shard).read_bytes()[row["offset"] :][: row["bytes"]]
        original = Image.open(source / name)
        assert shard == index.shards[row["shard"]].name
        assert index.classes[row["label"]] == Path(name).parent.name
        assert (row["width"], row["height"]) == original.size
        if name == "red/large.png":
            (tmp_path / "large.jpg").write_bytes(content)
            assert Image.open(tmp_path / "large.jpg").size == (32, 43)
            assert member.endswith(".jpg")
        else:
            assert content == (source / name).read_bytes()
    assert (index.classes, index.class_images) == (sorted(COLOURS), {"train": [10, 11, 10]})


def test_shards_are_a_webdataset_of_the_same_images(source: Path, tmp_path: Path):
    (tmp_path / "source" / "red" / "large.png").unlink()
    for split in ("train", "val"):
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / split).symlink_to(source)
    prepare_shards(index_source(tmp_path / "split", skip=False), tmp_path / "shards", OPTIONS, 1, lambda _: None)
    (tmp_path / "shards" / "shards.json").unlink()
    packed, loose = load(tmp_path / "shards", data_format="webdataset"), load(tmp_path / "split")
    assert packed.classes == loose.classes == sorted(COLOURS)
    for ours, theirs in ((packed.train, loose.train), (packed.val, loose.val)):
        assert sorted(map(hash_of, ours.images_NCHW)) == sorted(map(hash_of, theirs.images_NCHW))
    again = prepare_shards(
        index_source(tmp_path / "shards", skip=False), tmp_path / "again", OPTIONS, 1, lambda _: None
    )
    assert again.class_images == {"train": [10, 10, 10], "val": [10, 10, 10]}


def hash_of(image_CHW: torch.Tensor) -> int:
    return hash(image_CHW.numpy().tobytes())


def test_a_damaged_image_is_named_and_left_out_only_on_request(source: Path, tmp_path: Path, capsys):
    whole = (source / "blue" / "00.png").read_bytes()
    (source / "blue" / "00.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"blue/00\.png cannot be read.*or leave it out with --on-corrupt skip"):
        prepare(source, tmp_path / "shards")
    skipping = PrepareOptions(32, 90, 4, skip_damaged=True)
    print_preparation(str(source), str(tmp_path / "other"), skipping, processes=1, as_json=False)
    printed = capsys.readouterr()
    assert "holds 30 train images of 3 classes" in printed.out
    assert "left out: 1 damaged image" in printed.out
    assert "skipped:" in printed.err
    assert "blue/00.png" in printed.err


def test_a_full_disk_is_said_and_when_it_has_room_again_it_goes_on(source: Path, tmp_path: Path):
    (tmp_path / "shards" / ".preparing").mkdir(parents=True)
    (tmp_path / "shards" / "train-000003.tar.tmp").symlink_to("/dev/full")
    with pytest.raises(TrainerError, match=r"No space left on device.*run the same command again"):
        prepare(source, tmp_path / "shards")
    (tmp_path / "shards" / "train-000003.tar.tmp").unlink()
    assert sum(prepare(source, tmp_path / "shards").class_images["train"]) == 31


def written(folder: Path) -> dict[str, int]:
    """Return when each shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


def changed(before: dict[str, int], folder: Path) -> list[str]:
    return sorted(name for name, at in written(folder).items() if before[name] != at)


def test_shards_that_were_changed_or_cut_off_are_found_and_only_they_are_written_anew(source: Path, tmp_path: Path):
    prepare(source, tmp_path / "shards")
    before, files = contents(tmp_path / "shards"), written(tmp_path / "shards")
    file, other = tmp_path / "shards" / "train-000001.tar", tmp_path / "shards" / "train-000005.tar"
    whole = file.read_bytes()
    for damaged in (whole.replace(b"IHDR", b"IHDS", 1), whole[:-600]):
        file.write_bytes(damaged)
        other.unlink()
        message = r"train-000001\.tar isn't as it was written, nor 1 other shard: another (SHA-256|size)"
        with pytest.raises(DataError, match=message):
            prepare(source, tmp_path / "shards")
        prepare(source, tmp_path / "shards")
        assert contents(tmp_path / "shards") == before
        assert changed(files, tmp_path / "shards") == [file.name, other.name]


def test_what_was_left_out_stays_so_when_another_shard_is_written_anew(source: Path, tmp_path: Path):
    skipping = PrepareOptions(32, 90, 4, skip_damaged=True)
    for number in (3, 4, 17):
        next(source.rglob(f"{number:02d}.png")).write_bytes(b"no image")
    prepare(source, tmp_path / "shards", skipping)
    before = contents(tmp_path / "shards")
    (tmp_path / "shards" / "train-000002.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-000002\.tar isn't as it was written: another (SHA-256|size)"):
        prepare(source, tmp_path / "shards", skipping)
    prepare(source, tmp_path / "shards", skipping)
    assert contents(tmp_path / "shards") == before


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("was_damaged", [True, False])
def test_an_image_that_is_another_one_of_the_same_size_is_packed_again(
    source: Path, tmp_path: Path, *, complete: bool, was_damaged: bool
):
    """Into the shard that holds it, the others stay; also one that was damaged and left out, and is mended since."""
    skipping = PrepareOptions(32, 90, 4, skip_damaged=True)
    image, folder = source / "red" / "01.png", tmp_path / "shards"
    Image.new("RGB", (20, 24), (250, 0, 0)).save(image, "BMP")
    date = image.stat()
    if was_damaged:
        image.write_bytes(b"?" * date.st_size)
    if complete:
        prepare(source, folder, skipping)
    else:
        with pytest.raises(KeyboardInterrupt):
            prepare_shards(index_source(source, skip=False), folder, skipping, 1, interrupt_when_packed)
    files, log = written(folder), []
    Image.new("RGB", (20, 24), (0, 250, 0)).save(image, "BMP")
    os.utime(image, ns=(date.st_atime_ns, date.st_mtime_ns))  # as `cp --preserve` may leave it
    assert image.stat().st_size == date.st_size
    index = prepare(source, folder, skipping, log.append)
    (again,) = changed(files, folder)
    assert log[1:] == [f"images have changed since they were packed into {again}: packing them again"]
    assert index.skipped == []
    prepare(source, tmp_path / "fresh", skipping)
    assert contents(folder) == contents(tmp_path / "fresh")
    log.clear()
    prepare(source, folder, skipping, log.append)
    assert log == ["comparing the files of 31 images with those that 8 shards were made from"]


def test_a_list_of_names_that_is_lost_is_made_anew_with_the_shards(source: Path, tmp_path: Path):
    prepare(source, tmp_path / "shards")
    before = contents(tmp_path / "shards")
    for damage in (Path.unlink, lambda file: file.write_bytes(b"\xff\n"), lambda file: file.write_text("one\n")):
        damage(tmp_path / "shards" / "sources.tsv")
        (tmp_path / "shards" / "train-000001.tar").unlink()
        with pytest.raises(DataError, match=r"train-000001\.tar isn't as it was written"):
            prepare(source, tmp_path / "shards")
        prepare(source, tmp_path / "shards")
        assert contents(tmp_path / "shards") == before


def test_labels_places_and_counts_of_the_index_are_compared_with_what_the_shards_hold(source: Path, tmp_path: Path):
    folder, index = tmp_path / "shards", prepare(source, tmp_path / "shards")
    shard, rows = index.shards[1], np.array(map_samples(folder, index)[4:8])
    assert verify_shard(folder, shard, rows) == ""
    for column, message in {"label": "another label of 00000005.png", "offset": "00000005.png lies elsewhere"}.items():
        changed = rows.copy()
        changed[column][1] += 1
        assert verify_shard(folder, shard, changed).startswith(message)
    assert verify_shard(folder, shard, rows[:3]) == "another label of 00000007.png than in the index"
    assert verify_shard(folder, shard, np.append(rows, rows[:1])) == "fewer images than in the index"


@pytest.mark.parametrize(
    "change", [{"class_images": {"train": [11, 10, 10]}}, {"skipped": ["red/large.png is damaged"]}]
)
def test_counts_that_are_not_those_of_the_source_are_found(source: Path, tmp_path: Path, change: dict):
    index, file = prepare(source, tmp_path / "shards"), tmp_path / "shards" / "shards.json"
    before = contents(tmp_path / "shards")
    file.write_text(index.model_copy(update=change).model_dump_json())
    with pytest.raises(DataError, match="counts other images than the 31 in its shards, made from 31"):
        prepare(source, tmp_path / "shards")
    prepare(source, tmp_path / "shards")
    assert contents(tmp_path / "shards") == before


def test_two_commands_dont_write_into_one_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shard_folder, "_LOCK_PATIENCE_S", 0.0)
    with shard_folder.open_shard_folder(tmp_path / "shards", ""), pytest.raises(TrainerError, match="another process"):
        prepare(source, tmp_path / "shards")


REFUSALS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "inside the source": (lambda source, _: source / "shards", "lie in each other"),
    "around the source": (lambda source, _: source.parent, "lie in each other"),
    "other files": (lambda _, other: other, r"holds other files, such as notes\.txt"),
    "a file": (lambda _, other: other / "notes.txt", "is not a folder"),
    "below a file": (lambda _, other: other / "notes.txt" / "shards", "a file lies where a folder above it is needed"),
}


@pytest.mark.parametrize("where", REFUSALS)
def test_a_place_that_cant_be_written_to_is_refused_by_name(source: Path, tmp_path: Path, where: str):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    place, message = REFUSALS[where]
    before = contents(tmp_path)
    with pytest.raises(TrainerError, match=message):
        print_preparation(str(source), str(place(source, tmp_path / "other")), OPTIONS, processes=1, as_json=True)
    assert contents(tmp_path) == before


def test_other_options_and_a_source_without_classes_are_refused(source: Path, tmp_path: Path):
    prepare(source, tmp_path / "shards")
    with pytest.raises(TrainerError, match="made with other options"):
        prepare(source, tmp_path / "shards", PrepareOptions(64, 90, 4, skip_damaged=False))
    with pytest.raises(DataError, match="holds 0 class folders"):
        prepare(source / "red", tmp_path / "none")
    with pytest.raises(TrainerError, match="does not exist"):
        prepare(tmp_path / "nothing", tmp_path / "none")


def test_tars_beside_folders_of_images_are_refused(source: Path, tmp_path: Path):
    """As beside ImageNet's folders: packing one of the two kinds would leave the other out."""
    (source / "downloaded.tar").write_bytes(b"")
    with pytest.raises(TrainerError, match=r"downloaded\.tar, and folders of images, such as .*blue; move what"):
        prepare(source, tmp_path / "shards")


def test_files_and_splits_that_are_not_packed_are_named(source: Path, tmp_path: Path, capsys):
    whole = tmp_path / "whole"
    for split in ("train", "val", "test"):
        shutil.copytree(source, whole / split)
    (whole / "train" / "red" / "photo.heic").write_bytes(b"heic")
    index_source(whole, skip=False)
    ignored, unused = capsys.readouterr().err.splitlines()
    assert ignored.startswith("ignored 1 file (not images by their extension, or outside the class folders)")
    assert ignored.endswith(f"the first is {whole}/train/red/photo.heic")
    assert unused == f"not packed: {whole}/test"


def test_an_invalid_sample_of_a_tar_is_refused_with_the_commands_own_option(tmp_path: Path):
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(DataError, match=r"or leave it out with --on-corrupt skip$"):
        prepare(tmp_path / "one.tar", tmp_path / "shards")


def test_images_that_have_changed_since_are_other_images(source: Path, tmp_path: Path):
    prepare(source, tmp_path / "shards")
    save_image(source / "red" / "01.png", (0, 0, 0), 99)
    with pytest.raises(TrainerError, match="holds shards of other images"):
        prepare(source, tmp_path / "shards")


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"?")])
def test_a_sample_list_that_is_lost_is_made_anew_by_the_same_command(source: Path, tmp_path: Path, damage: Callable):
    prepare(source, tmp_path / "shards")
    before = contents(tmp_path / "shards")
    damage(tmp_path / "shards" / "shards.npy")
    with pytest.raises(DataError, match=r"shards\.npy is missing or damaged.*running the same command"):
        prepare(source, tmp_path / "shards")
    (tmp_path / "shards" / "classes.txt").write_text("others")
    prepare(source, tmp_path / "shards")
    assert contents(tmp_path / "shards") == before


def test_what_is_known_of_a_shard_and_damaged_is_found_out_again(source: Path, tmp_path: Path):
    prepare(source, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        prepare_shards(index_source(source, skip=False), tmp_path / "shards", OPTIONS, 1, interrupt_when_packed)
    (tmp_path / "shards" / ".preparing" / "train-000001.tar.json").write_text("{")
    prepare(source, tmp_path / "shards")
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


def interrupt_when_packed(progress: Progress) -> None:
    if progress.shards == progress.total_shards:
        raise KeyboardInterrupt


def test_a_name_with_tabs_and_line_breaks_is_one_field_of_a_line(source: Path, tmp_path: Path):
    save_image(source / "red" / "a\tb\nc\\d.png", (9, 9, 9), 1)
    prepare(source, tmp_path / "shards")
    lines = (tmp_path / "shards" / "sources.tsv").read_text().splitlines()
    assert len(lines) == 32
    assert r"red/a\tb\nc\\d.png" in [line.split("\t")[1] for line in lines]


@pytest.mark.parametrize("name", ["two\nlines", "  "])
def test_a_class_that_is_no_line_of_text_is_refused(source: Path, tmp_path: Path, name: str):
    save_image(source / name / "1.png", (9, 9, 9), 1)
    with pytest.raises(TrainerError, match="rename it"):
        prepare(source, tmp_path / "shards")


def test_a_class_of_which_nothing_is_left_is_named_with_an_image(source: Path, tmp_path: Path):
    (source / "pink").mkdir()
    (source / "pink" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r'class "pink" has no train image that can be decoded.*pink/1\.png'):
        prepare(source, tmp_path / "shards", PrepareOptions(32, 90, 4, skip_damaged=True))


def test_no_more_processes_are_started_than_there_are_shards(source: Path, tmp_path: Path):
    prepare_shards(index_source(source, skip=False), tmp_path / "shards", PrepareOptions(32, 90, 31, False), 10**6, id)


def test_an_index_that_is_damaged_or_of_another_version_is_refused_by_name(source: Path, tmp_path: Path):
    index = prepare(source, tmp_path / "shards")
    samples, file = tmp_path / "shards" / "shards.npy", tmp_path / "shards" / "shards.json"
    samples.write_bytes(samples.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"shards\.npy is missing or damaged"):
        map_samples(tmp_path / "shards", index)
    file.write_text(index.model_copy(update={"version": 2}).model_dump_json())
    with pytest.raises(DataError, match=r"format shoestring-shards 2, this trainer reads shoestring-shards 1"):
        prepare(source, tmp_path / "shards")
    file.write_text("{}")
    with pytest.raises(DataError, match=r"shards\.json is damaged.*give another folder, or remove"):
        prepare(source, tmp_path / "shards")
    assert np.load(samples).dtype.itemsize == 28
