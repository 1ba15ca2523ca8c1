# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards: the same images as from files; invalid samples are named, or skipped and counted."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from shoestring_trainer.training.data.webdataset import find_shards
from shoestring_trainer.training.errors import DataError

from tests.trainer.training.data.sample_images import COLOURS, encode, load, sample_image, save_image
from tests.trainer.training.gangs import finished

FORMAT = {"data_format": "webdataset"}
NAMES = sorted(COLOURS)


def pack(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(numbers: Iterable[int], label: str = "cls") -> Iterable[tuple[str, bytes]]:
    """Yield images whose class is their number modulo three, and their labels."""
    for number in numbers:
        message = str(number % 3) if label == "cls" else json.dumps({"label": number % 3, "source": "a test"})
        yield f"{number:04d}.jpg", encode(sample_image(COLOURS[NAMES[number % 3]], number), quality=95)
        yield f"{number:04d}.{label}", message.encode()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for shard in range(3):
        pack(tmp_path / "shards" / f"pics-{shard:03d}.tar", samples(range(20 * shard, 20 * shard + 20)))
    return tmp_path / "shards"


def test_shards_hold_the_same_images_as_files(tmp_path: Path):
    for part, numbers in (("train", range(30)), ("val", range(30, 39))):
        pack(tmp_path / "shards" / part / "a.tar", samples(numbers))
        for number in numbers:
            save_image(
                tmp_path / "files" / part / str(number % 3) / f"{number:04d}.jpg", COLOURS[NAMES[number % 3]], number
            )
    packed, loose = load(tmp_path / "shards", **FORMAT), load(tmp_path / "files")
    assert packed.classes == loose.classes == ["0", "1", "2"]
    for ours, theirs in ((packed.train, loose.train), (packed.val, loose.val)):
        order = ours.labels_N.argsort(stable=True)
        assert torch.equal(ours.labels_N[order], theirs.labels_N)
        assert torch.equal(ours.images_NCHW[order], theirs.images_NCHW)


def test_shards_without_splits_are_split_by_class_and_seed(shards: Path):
    first, again, other = load(shards, **FORMAT), load(shards, **FORMAT), load(shards, seed=2, **FORMAT)
    assert (len(first.train), len(first.val)) == (48, 12)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.split["data"] == "webdataset"
    assert first.split["val"][0].startswith("pics-000.tar/00")
    assert not list(shards.parent.glob("images-*"))


@pytest.mark.parametrize("label", ["cls", "json"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_and_label_is_read(tmp_path: Path, label: str, form: int):
    members = [(f"{'deep/' * 40}{name}" if form else name, content) for name, content in samples(range(30), label)]
    pack(tmp_path / "shards" / "a.tar", members, form)
    assert load(tmp_path / "shards", **FORMAT).classes == ["0", "1", "2"]


def named(folder: Path, *names: str) -> Path:
    """Return the folder with empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names_of(shards: Iterable[Path]) -> list[str]:
    return [shard.name for shard in shards]


def test_shards_are_found_by_folder_name_and_pattern(tmp_path: Path):
    named(tmp_path, "set-train-01.tar", "set-train-00.tar", "set-val-00.tar", "set-test-00.tar", ".set-train-9.tar")
    train, val, unused = (
        names_of(part) for part in (getattr(find_shards(tmp_path), f) for f in ("train", "val", "unused"))
    )
    assert train == ["set-train-00.tar", "set-train-01.tar"]
    assert (val, unused) == (["set-val-00.tar"], ["set-test-00.tar"])
    by_pattern = find_shards(tmp_path / "set-train-{00..01}.tar")
    assert (names_of(by_pattern.train), by_pattern.val) == (train, [])
    assert names_of(find_shards(tmp_path / "set-train-00.tar").train) == train[:1]
    with pytest.raises(DataError, match=r"set-train-02\.tar is missing, one of 3"):
        find_shards(tmp_path / "set-train-{00..04}.tar")
    with pytest.raises(DataError, match="smaller number first"):
        find_shards(tmp_path / "set-train-{04..00}.tar")
    with pytest.raises(DataError, match=r"holds no \.tar file"):
        find_shards(tmp_path.parent / tmp_path.name / "..")


def test_a_named_pipe_is_no_shard(tmp_path: Path):
    os.mkfifo(named(tmp_path, "a.tar") / "b.tar")
    assert find_shards(tmp_path).train == [tmp_path / "a.tar"]


def test_a_pattern_of_more_shards_than_there_can_be_is_refused_before_it_is_expanded(tmp_path: Path):
    for last in ("100000", "99999999999999", "9" * 200):
        with pytest.raises(DataError, match="names more than 100,000 shards"):
            find_shards(tmp_path / f"a-{{0..{last}}}.tar")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training-0.tar", "validation-0.tar"), ("train-0.tar", "eval-0.tar"), ("trainset-0.tar", "testset-0.tar"),
        ("trn_0.tar", "dev_0.tar"), ("My-Train.tar", "My-Held-Out.tar"), ("test-set-train.tar", "test-set-val.tar"),
        ("Training/0.tar", "validation/0.tar"), ("train/0.tar", "eval/0.tar"),
    ],
)  # fmt: skip
def test_shards_are_held_out_by_every_word_for_it(tmp_path: Path, train: str, val: str):
    splits = find_shards(named(tmp_path, train, val))
    assert (splits.train, splits.val) == ([tmp_path / train], [tmp_path / val])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-0.tar", "extra-0.tar"], "extra-0.tar doesn't: it could be for training or held out"),
        (["pics-0.tar", "val-0.tar"], "pics-0.tar doesn't: it could be for training or held out"),
        (["test-0.tar", "test-1.tar"], "all shards in .* are held out"),
        (["a-train-val-0.tar", "b-test-0.tar"], "says both train and val"),
        (["train/0.tar", "1.tar"], "either could be what to train on"),
        (["train/0.tar", "val/0.tar", "more/0.tar"], "more would be none"),
        (["train/0.tar", "training/0.tar"], "train, training in .* could each be what to train on"),
        (["train/0.tar", "val/0.tar", "validation/0.tar"], "val, validation in .* could each be what to validate on"),
    ],
)
def test_shards_whose_names_leave_it_open_are_refused_with_both_readings(
    tmp_path: Path, names: list[str], message: str
):
    with pytest.raises(DataError, match=message):
        find_shards(named(tmp_path, *names))


def test_the_log_says_which_shards_are_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, numbers in (("training-0", range(9)), ("training-1", range(9, 18)), ("eval", range(3)), ("test", [])):
        pack(tmp_path / f"{name}.tar", samples(numbers))
    load(tmp_path, **FORMAT)
    assert (
        f"training on 18 images of 3 classes in 2 shards, {tmp_path}/training-0.tar to training-1.tar, validating on 3 "
        f"in {tmp_path}/eval.tar; not used: {tmp_path}/test.tar\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_text_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str):
    members = [(name, NAMES[int(content)].encode(encoding)) if name.endswith("cls") else (name, content)
               for name, content in samples(range(30))]  # fmt: skip
    pack(tmp_path / "a.tar", members)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), encoding)
    assert load(tmp_path, **FORMAT).classes == NAMES
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), "utf-16")
    with pytest.raises(DataError, match=r"classes\.txt .*UTF-16; save it as UTF-8"):
        load(tmp_path, **FORMAT)


def test_one_class_in_two_unicode_spellings_is_refused(shards: Path):
    pack(shards / "more.tar", [("x.jpg", b"image"), ("x.cls", "cafe\u0301".encode())])
    (shards / "classes.txt").write_text("caf\xe9\nred\nyellow\n")
    with pytest.raises(DataError, match=r"more\.tar/x\.jpg .*'cafe\\u0301' and 'caf\\xe9', in two Unicode spellings"):
        load(shards, **FORMAT)
    (shards / "classes.txt").write_text("caf\xe9\ncafe\u0301\nyellow\n")
    with pytest.raises(DataError, match=r"has a class .* twice"):
        load(shards, **FORMAT)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x.jpg", b"image"), ("x.cls", b"-1")], r"bad\.tar/x\.jpg is -1; labels are 0, 1, 2"),
        ([], r"the shard .*bad\.tar is empty"),
        (
            [("img.001.jpg", b"image"), ("img.001.cls", b"1")],
            r"img in .*bad\.tar is invalid: a key ends at the first dot",
        ),
        ([("x.jpg", b"image"), ("x.json", b"1" + b"0" * 40)], r"x in .*bad\.tar is invalid: x.json holds no label"),
    ],
    ids=["negative", "empty", "dotted", "huge"],
)
def test_what_is_wrong_in_a_shard_is_said_with_its_name(shards: Path, members: list[tuple[str, bytes]], message: str):
    pack(shards / "bad.tar", members)
    with pytest.raises(DataError, match=message):
        load(shards, **FORMAT)
    assert load(shards, on_corrupt="skip", **FORMAT).skipped == 1


def test_class_names_are_read_from_a_file_beside_the_shards(shards: Path):
    (shards / "classes.txt").write_text("blue\nred\nyellow\n")
    assert load(shards, **FORMAT).classes == NAMES
    (shards / "classes.txt").write_text("blue\nred\nblue\n")
    with pytest.raises(DataError, match=r"classes\.txt must name each class once, and has blue twice"):
        load(shards, **FORMAT)


def test_labels_may_be_strings(tmp_path: Path):
    members = [(name, NAMES[int(content)].encode()) if name.endswith("cls") else (name, content)
               for name, content in samples(range(30))]  # fmt: skip
    pack(tmp_path / "shards" / "a.tar", members)
    assert load(tmp_path / "shards", **FORMAT).classes == NAMES


FAULTS = {
    "no label": ([("x.jpg", b"image")], "it has no label"),
    "no image": ([("x.cls", b"1")], "it has no image"),
    "label of nothing": ([("x.jpg", b"image"), ("x.cls", b" ")], "x.cls holds no label"),
    "label of a fraction": ([("x.jpg", b"image"), ("x.json", b'{"label": 1.5}')], "x.json holds no label"),
    "label of true": ([("x.jpg", b"image"), ("x.json", b'{"label": true}')], "x.json holds no label"),
    "no json": ([("x.jpg", b"image"), ("x.json", b"{")], "x.json holds no label"),
    "deep json": ([("x.jpg", b"image"), ("x.json", b"[" * 100_000)], "x.json holds no label"),
    "json without label": ([("x.jpg", b"image"), ("x.json", b'{"width": 3}')], "it has no label"),
    "two labels": ([("x.jpg", b"image"), ("x.cls", b"1"), ("x.json", b"2")], "two labels, 1 and 2"),
    "two images": ([("x.jpg", b"image"), ("x.png", b"image"), ("x.cls", b"1")], "it has two images"),
    "empty image": ([("x.jpg", b""), ("x.cls", b"1")], "x.jpg has 0 bytes"),
    "out of range": ([("x.jpg", b"image"), ("x.cls", b"3")], r"is 3, which is none of the 3 classes"),
    "below zero": ([("x.jpg", b"image"), ("x.cls", b"-1")], r"is -1, which is none of the 3 classes"),
    "a word": ([("x.jpg", b"image"), ("x.cls", b"green")], r"is 'green', which is none of the 3 classes"),
    "corrupt image": ([("x.jpg", b"no image"), ("x.cls", b"1")], r"bad\.tar/x\.jpg cannot be read as an image"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_sample_is_named_or_skipped_and_counted(shards: Path, fault: str):
    members, message = FAULTS[fault]
    pack(shards / "bad.tar", members)
    (shards / "classes.txt").write_text("blue\nred\nyellow\n")
    with pytest.raises(DataError, match=rf"bad\.tar.*{message}|{message}.*bad\.tar|{message}") as refused:
        load(shards, **FORMAT)
    assert str(shards / "bad.tar") in str(refused.value)
    assert "on_corrupt=skip" in str(refused.value)
    data = load(shards, on_corrupt="skip", **FORMAT)
    assert (len(data.train) + len(data.val), data.skipped) == (60, 1)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"7", r"no sample has the label 3, but .*bad\.tar/x\.jpg has 7"),
        (b"green", "'green', where others are integers"),
    ],
)
def test_labels_with_gaps_or_of_mixed_types_are_rejected(shards: Path, label: bytes, message: str):
    pack(shards / "bad.tar", [("x.jpg", b"image"), ("x.cls", label)])
    with pytest.raises(DataError, match=message):
        load(shards, **FORMAT)


def test_labels_that_begin_at_one_are_rejected(tmp_path: Path):
    members = [(name, str(int(content) + 1).encode()) if name.endswith("cls") else (name, content)
               for name, content in samples(range(30))]  # fmt: skip
    pack(tmp_path / "shards" / "a.tar", members)
    with pytest.raises(DataError, match="no sample has the label 0"):
        load(tmp_path / "shards", **FORMAT)


def test_members_that_belong_to_no_sample_are_ignored(shards: Path):
    pack(shards / "more.tar", [("__index__", b"x"), ("._0001.jpg", b"x"), ("note.txt", b"x"), *samples(range(60, 63))])
    data = load(shards, **FORMAT)
    assert (len(data.train) + len(data.val), data.skipped) == (63, 0)


@pytest.mark.parametrize("name", ["../../escaped.jpg", "/tmp/escaped.jpg"])
def test_names_in_a_tar_are_never_used_as_paths(shards: Path, name: str):
    image_bytes = encode(sample_image(COLOURS["red"], 1))
    pack(shards / "more.tar", [(name, image_bytes), (name.replace("jpg", "cls"), b"1")])
    data = load(shards, val_fraction=0.9, **FORMAT)
    assert len(data.train) + len(data.val) == 61
    assert not list(shards.parent.rglob("escaped*"))


def test_a_link_in_place_of_an_image_is_rejected(shards: Path):
    with tarfile.open(shards / "bad.tar", "w") as tar:
        link = tarfile.TarInfo("x.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        label = tarfile.TarInfo("x.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(b"1"))
    with pytest.raises(DataError, match=r"x\.jpg is a link"):
        load(shards, **FORMAT)


@pytest.mark.parametrize("end", [5000, 10_240, -1])
def test_a_truncated_shard_is_rejected(shards: Path, end: int):
    shard = shards / "pics-001.tar"
    shard.write_bytes(shard.read_bytes()[:end] if end > 0 else b"")
    with pytest.raises(DataError, match=rf"{shard} isn't a complete, uncompressed tar"):
        load(shards, on_corrupt="skip", **FORMAT)


def test_concatenated_or_compressed_shards_are_rejected(shards: Path):
    shard = shards / "pics-001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content + content)
    with pytest.raises(DataError, match="data after its end mark"):
        load(shards, **FORMAT)
    with tarfile.open(shard, "w:gz") as tar:
        tar.add(__file__, "x.jpg")
    with pytest.raises(DataError, match="isn't a complete, uncompressed tar"):
        load(shards, **FORMAT)


@pytest.mark.parametrize("file", ["pics-001.tar", "classes.txt"])
def test_a_sparse_file_of_terabytes_is_refused_before_it_is_read(shards: Path, file: str):
    with (shards / file).open("ab") as opened:
        opened.truncate(256 << 30)
    with pytest.raises(DataError, match=rf"{file}.*274,877,\d{{3}},\d{{3}} bytes"):
        load(shards, **FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_to_fill_the_memory_is_refused(shards: Path, kind: bytes):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 200 << 30
    with (shards / "bad.tar").open("wb") as opened:
        opened.write(header.tobuf(tarfile.GNU_FORMAT))
        opened.truncate(256 << 30)
    with pytest.raises(DataError, match=r"bad\.tar isn't .*a header of 214,748,364,800 bytes"):
        load(shards, **FORMAT)


@pytest.mark.parametrize("file", ["pics-003.tar", "classes.txt"])
def test_a_pipe_beside_the_shards_is_named_or_no_shard(shards: Path, file: str):
    os.mkfifo(shards / file)
    if file.endswith(".tar"):
        assert len(load(shards, **FORMAT).train) == 48
    else:
        with pytest.raises(DataError, match=r"cannot read .*classes\.txt \(it is a pipe, where a file is needed\)"):
            load(shards, **FORMAT)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a\x1b]0;x\x07\nb\nc", r"has the class 'a\\x1b\]0;x\\x07', whose name has characters"),
        ("a\0b\nb\nc", r"the class 'a\\x00b'"),
        ("a\x1cb\nb\nc", r"the class 'a\\x1cb'"),
        ("a\u2028b\nb\nc", r"the class 'a\\u2028b'"),
        ("a\u202eb\nb\nc", r"the class 'a\\u202eb'"),
        ("a\n\nb\nc", "a class whose name is blank, ''; rename it"),
        ("a\n" + "b" * 300 + "\nc", "a class whose name has 300 characters"),
        ("a\nb\na", "must name each class once, and has a twice"),
        ("a\n", "must name at least two classes, one a line"),
        ("", "must name at least two classes, one a line"),
    ],
)
def test_names_of_classes_that_no_line_can_show_are_refused(shards: Path, names: str, message: str):
    (shards / "classes.txt").write_text(names)
    with pytest.raises(DataError, match=rf"classes\.txt.* {message}"):
        load(shards, **FORMAT)


def test_names_of_classes_may_be_in_any_script_and_end_in_blank_lines(shards: Path):
    names = ["कुत्ता", "می‌خواهم", "👩‍🚒 engine"]
    (shards / "classes.txt").write_text("\r\n".join([*names, "", ""]))
    assert load(shards, **FORMAT).classes == names


def test_damage_anywhere_in_a_shard_raises_a_data_error_or_changes_no_sample(tmp_path: Path):
    draw = np.random.default_rng(1)
    shard = pack(tmp_path / "shards" / "a.tar", samples(range(12)))
    whole, names, refused = shard.read_bytes(), load(shard.parent, **FORMAT).val_names, 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in draw.integers(0, len(damaged) // 512, 2):
            damaged[512 * place + draw.integers(0, 160)] = draw.integers(0, 256)
        shard.write_bytes(damaged)
        try:
            data = load(shard.parent, **FORMAT)
        except DataError:
            refused += 1
        else:
            assert len(data.train) + len(data.val) == 12
            assert data.val_names == names
    assert refused > 50


def test_two_ranks_train_on_shards(shards: Path, tmp_path: Path):
    params = {"epochs": 6, "batch_size": 16, "width": 8, "image_size": 16, "crop_padding": 2, "cutout": 4, "lr": 0.05}
    data = {"train": str(shards / "pics-{000..002}.tar"), "format": "webdataset"}
    run = finished(tmp_path / "run", procs=2, recipe="imagefolder/resnet9", params=params, data=data)
    card = json.loads(run.part("model.json"))
    assert card["metrics"]["val/acc"] == 1.0
    assert card["images"] == {"train": 48, "val": 12, "skipped": 0}
