import { expect, test } from "vitest";
import { mergeUpdate, NO_CURVES } from "../../live/curves";
import { accuracyRange, axisWidth, alignLines, epochInterpolator, formatPosition, formatTick, formatXTick, makePositionOf, tickTexts } from "./plot-axes";

const line = (steps: number[], values: number[]) => ({ steps, times: steps, values });
const bySteps = ({ steps }: { steps: number[] }) => steps;

test("lines with the same places need no joining", () => {
  expect(alignLines([line([1, 2], [3, 4]), line([1, 2], [5, 6])], bySteps, false)).toEqual([[1, 2], [3, 4], [5, 6]]);
});

test("lines with other places are joined: drawn across where they have no point", () => {
  const [xs, a, b] = alignLines([line([1, 2, 4], [3, 4, 5]), line([2, 3], [6, 7])], bySteps, false);
  expect(xs).toEqual([1, 2, 3, 4]);
  expect(a).toEqual([3, 4, undefined, 5]);
  expect(b).toEqual([undefined, 6, 7, undefined]);
});

test("what can't be drawn is a gap, on a log axis also what isn't positive", () => {
  expect(alignLines([line([1, 2, 3], [1, Number.NaN, -1])], bySteps, false)[1]).toEqual([1, null, -1]);
  expect(alignLines([line([1, 2, 3], [1, Infinity, 0])], bySteps, true)[1]).toEqual([1, null, null]);
});

test("nothing to draw is an empty table", () => {
  expect(alignLines([], bySteps, false)).toEqual([[]]);
});

test("the epoch of a step lies on the line through those that were reported", () => {
  const epochs = { name: "epoch", generation: 1, machine: null, rolled_back: false, steps: [10, 20], times: [1, 2], values: [1, 2] };
  const epoch = epochInterpolator(mergeUpdate(NO_CURVES, { generation: 1, curves: [epochs] }));
  expect([0, 5, 10, 15, 20, 30].map(epoch)).toEqual([0, 0.5, 1, 1.5, 2, 3]);
});

test("time never runs backwards, though the clocks of two machines differ", () => {
  expect(makePositionOf(NO_CURVES, "time", 100)({ steps: [1, 2, 3], times: [101, 105, 104], values: [0, 0, 0] })).toEqual([1, 5, 5]);
});

test.each([
  ["train/loss", 0.2, 0.05, false, "0.20"],
  ["train/loss", 3, 1, false, "3"],
  ["val/acc", 0.975, 0.025, false, "97.5\u00a0%"],
  ["val/acc", 1, 0.1, false, "100\u00a0%"],
  ["val/acc_top5", 0.975, 0.025, false, "97.5\u00a0%"],
  ["train/lr", 0.0001, 0, true, "0.0001"],
  ["train/loss", -0.5, 0.25, false, "−0.50"],
  ["train/loss", 2e6, 1e6, false, "2.00e6"],
])("a tick of %s at %d in steps of %d", (name, tick, step, log, text) => {
  expect(formatTick(name, tick, step, log)).toBe(text);
});

test.each([
  [0.98, 0.98, [0.93, 1]],
  [1, 1, [0.95, 1]],
  [0, 0, [0, 0.05]],
  [0.5, 0.9, [0.46, 0.94]],
  [12, 94, [3.8, 102.2]], // a hook that reports percent
  [null, null, [0, 1]],
])("accuracies from %d to %d are drawn within what an accuracy can be", (least, most, range) => {
  accuracyRange(least, most).forEach((end, i) => expect(end).toBeCloseTo((range as number[])[i]!));
});

test("no two ticks of an axis read the same", () => {
  expect(tickTexts([-5, 0, 5, 10], (tick) => formatXTick("time", tick, 5))).toEqual(["−5\u00a0s", "0\u00a0s", "5\u00a0s", "10\u00a0s"]);
  expect(tickTexts([1.001, 1.002, 1.003], (tick) => formatXTick("epoch", tick, 0.001))).toEqual(["1.001", "1.002", "1.003"]);
  expect(tickTexts([1_000_000, 1_000_100, 1_000_200], (tick) => formatTick("train/loss", tick, 100, false))).toEqual(["1.00e6", "", ""]);
  expect(tickTexts([null, 1], String)).toEqual(["", "1"]);
});

test("what a machine measured before the first step is before it", () => {
  expect(formatPosition("time", -75)).toBe("−1m\u00a015s");
});

test("the vertical axis has room for the longest text of its ticks", () => {
  expect(axisWidth(["9\u00a0%", "100.00\u00a0%"], (text) => text.length * 8.1, 54)).toBe(65);
  expect(axisWidth([], () => 0, 54)).toBe(54);
});
