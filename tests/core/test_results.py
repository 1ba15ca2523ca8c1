# SPDX-License-Identifier: Apache-2.0
"""What runs came to: two clocks, the cost of a target, the spread of seeds, and DAWNBench's form in and out."""

from __future__ import annotations

from datetime import date

import pytest
from shoestring_core import dawnbench, results
from shoestring_core.results import Curve, EpochResult, RentedMachine, RunResult


def curves(times: dict[int, float], scores: dict[int, float], evaluation_s: float = 2.0) -> dict[str, Curve]:
    """A run of ten steps an epoch, its lines written at `times`, measured at the steps of `scores`."""
    steps, measured = list(times), list(scores)
    at = [times[step] for step in measured]
    return {
        "train/loss": Curve(steps, list(times.values()), [1.0] * len(steps)),
        "epoch": Curve(steps, list(times.values()), [step / 10 for step in steps]),
        "val/acc": Curve(measured, at, list(scores.values())),
        "val/acc_top5": Curve(measured, at, [0.99] * len(measured)),
        results.EVALUATION_S: Curve(measured, at, [evaluation_s] * len(measured)),
        "system/gpu": Curve([0, 99], [0.0, 5000.0], [0.0, 0.0]),
    }


def test_training_time_leaves_out_scoring_and_the_first_step_counts_as_one():
    times = {step: 1000.0 + step + (2 if step >= 10 else 0) + (2 if step >= 20 else 0) for step in range(1, 21)}
    epochs_found = results.epoch_results(curves(times, {10: 0.5, 20: 0.9}), "val/acc", submitted=900.0)
    assert [(row.epoch, row.train_s, row.wait_s) for row in epochs_found] == [(1.0, 10.0, 112.0), (2.0, 20.0, 124.0)]
    assert [(row.top1, row.top5, row.score) for row in epochs_found] == [(0.5, 0.99, 0.5), (0.9, 0.99, 0.9)]


def test_time_between_generations_is_waited_not_trained():
    """The second generation resumed from step 12, five minutes later."""
    times = {step: 1000.0 + step + (300 if step > 12 else 0) for step in range(1, 21)}
    epochs_found = results.epoch_results(curves(times, {20: 0.9}, 0.0), "val/acc", starts=[0, 12], submitted=1000.0)
    assert (epochs_found[0].train_s, epochs_found[0].wait_s) == (20.0, 320.0)
    without = results.epoch_results(curves(times, {20: 0.9}, 0.0), "val/acc", starts=[0], submitted=1000.0)
    assert without[0].train_s == 320.0


def test_lines_that_were_thinned_out_still_add_up():
    times = {step: 1000.0 + step for step in (5, 10, 15, 20)}
    epochs_found = results.epoch_results(curves(times, {10: 0.5, 20: 0.9}, 0.0), "val/acc")
    assert [row.train_s for row in epochs_found] == [10.0, 20.0]
    assert results.epoch_results({}, "val/acc") == ()


def test_a_training_time_that_the_lines_do_not_tell_is_unknown():
    """One line, and one line of each generation: they come after startup."""
    for times, starts in (({10: 1000.0}, [0]), ({10: 1000.0, 20: 2000.0}, [0, 10])):
        found = results.epoch_results(curves(times, {10: 0.95}, 0.0), "val/acc", starts=starts, submitted=900.0)
        assert [(row.train_s, row.wait_s) for row in found] == [(None, 100.0)]
        one = RunResult("a", "m", "h", "val/acc", found, usd_per_hour=3.0, submitted=900.0)
        reached = results.time_to_target(one, 0.9)
        assert reached is not None
        assert (reached.train_s, reached.wait_s, reached.on_demand_usd) == (None, 100.0, None)
        seeds = results.summarize_seeds([one, one], 0.9)
        assert (seeds.reached, seeds.median_train_s) == (2, None)
        with pytest.raises(dawnbench.InvalidEntry, match="training time isn't known"):
            dawnbench.entry_from_run(
                one, author="a", email="b", framework="c", submitted=date(2026, 1, 1), top5=False
            )  # fmt: skip


def run(name: str, *scores: float, **more) -> RunResult:
    rows = tuple(EpochResult(n, 60.0 * n, score, score, None, 100.0 + 60 * n) for n, score in enumerate(scores, 1))
    return RunResult(name, "cifar10/airbench94", "1 x local.cpu", "val/acc", rows, **more)


def test_the_cost_of_a_target_is_that_of_its_first_crossing():
    machines = (RentedMachine(0.3, 1000.0, 1130.0), RentedMachine(0.6, 1130.0, None))
    one = run("a", 0.5, 0.94, 0.93, usd_per_hour=3.0, submitted=1000.0, machines=machines)
    found = results.time_to_target(one, 0.94)
    assert found is not None
    assert (found.epoch, found.train_s, found.wait_s) == (2, 120.0, 220.0)
    assert found.on_demand_usd == pytest.approx(0.1)
    assert found.paid_usd == pytest.approx((0.3 * 130 + 0.6 * 90) / 3600)
    assert results.time_to_target(one, 0.95) is None
    assert (one.best, one.last) == (0.94, 0.93)


def test_seeds_are_counted_with_their_spread():
    seeds = results.summarize_seeds([run("a", 0.9, 0.94), run("b", 0.92), run("c", 0.95)], 0.94)
    assert (seeds.reached, seeds.runs, seeds.lowest, seeds.highest) == (2, 3, 0.92, 0.95)
    assert seeds.mean == pytest.approx(0.936667, abs=1e-6)
    assert seeds.spread == pytest.approx(0.0152753, abs=1e-6)
    assert seeds.median_train_s == 90.0
    with pytest.raises(ValueError, match="evaluated"):
        results.summarize_seeds([run("d")], 0.94)


def entry(top5: bool) -> dawnbench.Entry:
    rows = tuple(EpochResult(n, 36.0 * n, 0.9 + n / 100, 0.7, 0.9 + n / 100) for n in (1, 2, 3))
    ours = RunResult("0193", "imagenet/cheap" if top5 else "cifar10/page-resnet9", "8 x V100 (ec2)", "any", rows, 24.48)
    return dawnbench.entry_from_run(
        ours, author="Our Team", email="team@example.org", framework="PyTorch 2.13.0", submitted=date(2026, 11, 21),
        top5=top5, misc={"precision": "fp16"},
    )  # fmt: skip


def test_cifar10s_form_has_three_columns_and_imagenets_four():
    _, table = dawnbench.write(entry(top5=False))
    assert table.splitlines()[:2] == ["epoch\thours\ttop1Accuracy", "1\t0.01000000\t91.00"]
    _, table = dawnbench.write(entry(top5=True))
    assert table.splitlines()[:2] == ["epoch\thours\ttop1Accuracy\ttop5Accuracy", "1\t0.01000000\t70.00\t91.00"]
    assert entry(top5=False).stem == "our-team_cifar10-page-resnet9_8-x-v100-ec2_pytorch-2.13.0"


@pytest.mark.parametrize("top5", [False, True])
def test_what_was_written_reads_as_it_was(top5: bool):
    document, table = dawnbench.write(entry(top5))
    read = dawnbench.read(document.encode(), table.encode())
    assert read == entry(top5)
    again = dawnbench.run_from_entry(read)
    assert again.metric == ("val/acc_top5" if top5 else "val/acc")
    found = results.time_to_target(again, 0.93)
    assert found is not None
    assert (found.epoch, found.train_s) == (3, 108.0)
    assert found.on_demand_usd == pytest.approx(24.48 * 0.03)


def test_files_from_other_systems_are_read_with_their_habits():
    """A byte-order mark, Windows' line ends, columns in another order, an empty last line."""
    document, _ = dawnbench.write(entry(top5=False))
    read = dawnbench.read(
        b"\xef\xbb\xbf" + document.encode(), b"\xef\xbb\xbfhours\tepoch\ttop1Accuracy\r\n0.5\t1\t94.1\r\n\r\n"
    )
    assert read.rows == (dawnbench.EpochRow(1, 0.5, 94.1),)


@pytest.mark.parametrize(
    ("document", "table", "words"),
    [
        (b"[]", b"", "no object"),
        (b"{", b"", "can't be read"),
        (b"[" * 100_000, b"", "can't be read"),
        (b"{}", b"", "lacks version, author"),
        (None, b"epoch\thours\n", "needs epoch, hours, top1Accuracy"),
        (None, b"epoch\thours\ttop1Accuracy\n", "no rows"),
        (None, b"epoch\thours\ttop1Accuracy\n1\tsoon\t94\n", "line 2"),
        (None, b"epoch\thours\ttop1Accuracy\n1\tnan\t94\n", "line 2"),
        (None, b"\xff\xfe", "isn't text"),
        (None, b"epoch\thours\ttop1Accuracy\n" + b"1" * 200_000 + b"\t1\t94\n", "can't be read"),
    ],
)
def test_files_that_are_no_entry_say_why(document: bytes | None, table: bytes, words: str):
    good, _ = dawnbench.write(entry(top5=False))
    with pytest.raises(dawnbench.InvalidEntry, match=words):
        dawnbench.read(good.encode() if document is None else document, table)


def test_energy_of_machines_that_read_one_meter_is_counted_once_and_of_others_added():
    def read(*readings: tuple[float, float]) -> Curve:
        return Curve(range(len(readings)), [at for at, _ in readings], [joules for _, joules in readings])

    first, late = read((0, 0), (10, 100), (20, 300)), read((15, 0), (20, 100), (30, 200))
    assert results.energy_joules([[first, late]]) == pytest.approx(400)
    assert results.energy_joules([[first], [late]]) == pytest.approx(500)
    assert results.energy_joules([[read((0, 0), (10, 100), (12, 0), (20, 50))]]) == pytest.approx(
        150
    )  # an agent restarted
    assert results.energy_joules([[read((0, 0))]]) is None
    assert results.energy_joules([]) is None
