import { describe, expect, test } from "vitest";
import { type Curve, type Curves, isConstant, splitCurve, NO_CURVES, mergeUpdate, metricNames, restartMarkers, machineLines } from "./curves";

function curve(steps: number[], options: Partial<Curve> = {}): Curve {
  return { name: "train/loss", generation: null, machine: null, rolled_back: false, steps, times: steps.map((step) => 1000 + step), values: steps.map((step) => step / 10), ...options };
}

function points(generation: number, steps: number[], options: Partial<Curve> = {}) {
  return { generation, curves: [curve(steps, options)] };
}

const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i);
const mergedSteps = (curves: Curves) => splitCurve(curves, "train/loss").merged.steps;

describe("mergeUpdate", () => {
  test("points in order are appended", () => {
    const curves = [points(1, [1, 2]), points(1, [3]), points(1, [4, 5])].reduce(mergeUpdate, NO_CURVES);
    expect(mergedSteps(curves)).toEqual([1, 2, 3, 4, 5]);
  });

  test("repeated or overlapping points change nothing", () => {
    const once = mergeUpdate(NO_CURVES, points(1, range(1, 50)));
    const again = [points(1, range(1, 50)), points(1, range(20, 30)), points(1, range(45, 60))].reduce(mergeUpdate, once);
    expect(mergedSteps(again)).toEqual(range(1, 60));
  });

  test("late points are inserted in order", () => {
    const curves = [points(1, [5, 6]), points(1, [1, 2]), points(1, [4]), points(1, [3, 7])].reduce(mergeUpdate, NO_CURVES);
    expect(mergedSteps(curves)).toEqual(range(1, 7));
    expect(splitCurve(curves, "train/loss").merged.values).toEqual(range(1, 7).map((step) => step / 10));
  });

  test("steps within one message may be in any order", () => {
    expect(mergedSteps(mergeUpdate(NO_CURVES, points(1, [3, 1, 2])))).toEqual([1, 2, 3]);
  });

  test("the result does not depend on the order or the size of updates", () => {
    let state = 7;
    const random = () => (state = (state * 1103515245 + 12345) % 2147483648) / 2147483648;
    const generations = [{ number: 1, attempt: 1, start_step: 0 }, { number: 2, attempt: 2, start_step: 30 }];
    for (let round = 0; round < 50; round++) {
      const messages = [];
      for (const [generation, from, to] of [[1, 1, 40], [2, 31, 60]] as const) {
        for (let first = from; first <= to; ) {
          const last = Math.min(to, first + Math.floor(random() * 9));
          messages.push(points(generation, range(first, last)));
          first = last + 1;
        }
      }
      const shuffled = messages.concat(messages.slice(0, 3)).sort(() => random() - 0.5);
      const curves = mergeUpdate(shuffled.reduce(mergeUpdate, NO_CURVES), { curves: [], generations });
      const { merged, rolledBack } = splitCurve(curves, "train/loss");
      expect(merged.steps).toEqual(range(1, 60));
      expect(rolledBack.map((line) => line.steps)).toEqual([range(30, 40)]);
    }
  });

  test("earlier curves are not changed by later updates", () => {
    const before = mergeUpdate(NO_CURVES, points(1, [1, 2]));
    mergeUpdate(before, points(1, [3]));
    mergeUpdate(before, points(1, [9]));
    const after = mergeUpdate(before, points(1, [5]));
    expect(mergedSteps(before)).toEqual([1, 2]);
    expect(mergedSteps(after)).toEqual([1, 2, 5]);
  });

  test("thousands of small messages stay in order", () => {
    let curves = NO_CURVES;
    for (let step = 1; step <= 5000; step++) curves = mergeUpdate(curves, points(1, [step]));
    expect(mergedSteps(curves)).toEqual(range(1, 5000));
  });

  test("NaN and infinities, strings in JSON, are parsed", () => {
    const values = [0.5, "NaN", "Infinity", "-Infinity"] as unknown as number[];
    const curves = mergeUpdate(NO_CURVES, points(1, [1, 2, 3, 4], { values }));
    expect(splitCurve(curves, "train/loss").merged.values).toEqual([0.5, Number.NaN, Infinity, -Infinity]);
  });
});

describe("generations", () => {
  test("each owns the steps up to the start of its successor", () => {
    const curves = [
      points(1, range(1, 12)),
      { curves: [], generations: [{ number: 1, attempt: 1, start_step: 0 }, { number: 2, attempt: 2, start_step: 10 }] },
      points(2, range(11, 15), { values: range(11, 15).map(() => 7) }),
    ].reduce(mergeUpdate, NO_CURVES);
    const { merged, rolledBack } = splitCurve(curves, "train/loss");
    expect(merged.steps).toEqual(range(1, 15));
    expect(merged.values[10]).toBe(7);
    expect(rolledBack.map((line) => line.steps)).toEqual([[10, 11, 12]]);
  });

  test("a successor without a step ends its predecessor's part already", () => {
    const curves = mergeUpdate(mergeUpdate(NO_CURVES, points(1, range(1, 12))), {
      curves: [],
      generations: [{ number: 1, attempt: 1, start_step: 0 }, { number: 2, attempt: 2, start_step: 8 }],
    });
    expect(splitCurve(curves, "train/loss").merged.steps).toEqual(range(1, 8));
  });

  test("an unknown one starts just before its first point", () => {
    const curves = [points(1, range(1, 12)), points(2, [9, 10])].reduce(mergeUpdate, NO_CURVES);
    expect(mergedSteps(curves)).toEqual(range(1, 10));
    expect(restartMarkers(curves)).toMatchObject([{ generation: 2, step: 8 }]);
  });

  test("late steps of an old one are rolled back, never on the merged curve", () => {
    const curves = [points(2, range(9, 20)), points(1, range(1, 14)), points(1, [15, 16])].reduce(mergeUpdate, NO_CURVES);
    const { merged, rolledBack } = splitCurve(curves, "train/loss");
    expect(merged.steps).toEqual(range(1, 20));
    expect(rolledBack[0]!.steps).toEqual(range(8, 16));
  });

  test("one that starts further back replaces everything after its start", () => {
    const generations = [
      { number: 1, attempt: 1, start_step: 0 },
      { number: 2, attempt: 1, start_step: 20 },
      { number: 3, attempt: 2, start_step: 10 },
    ];
    const curves = [points(1, range(1, 25)), points(2, range(21, 30)), points(3, range(11, 12)), { curves: [], generations }].reduce(mergeUpdate, NO_CURVES);
    expect(mergedSteps(curves)).toEqual(range(1, 12));
    expect(restartMarkers(curves).map(({ newAttempt }) => newAttempt)).toEqual([false, true]);
  });
});

test("system series belong to a machine, not to a generation", () => {
  const load = (machine: string, steps: number[]) => ({ generation: 1, curves: [curve(steps, { name: "system/cpu_percent", machine })] });
  const curves = [load("a", [5, 10]), load("b", [5, 10]), load("a", [15])].reduce(mergeUpdate, NO_CURVES);
  expect(machineLines(curves, "system/cpu_percent").map(({ machine, line }) => [machine, line.times])).toEqual([
    ["a", [1005, 1010, 1015]],
    ["b", [1005, 1010]],
  ]);
  expect(restartMarkers(curves)).toEqual([]);
});

test("validation metrics come first and system metrics last", () => {
  const reading = { generation: 1, curves: ["system/x", "epoch", "train/loss", "val/acc"].map((name) => curve([1], { name })) };
  expect(metricNames(mergeUpdate(NO_CURVES, reading))).toEqual(["val/acc", "train/loss", "epoch", "system/x"]);
});

test("a metric is constant once it has had one value for long, in all generations", () => {
  const flat = (steps: number[]) => ({ values: steps.map(() => 0.9) });
  const short = mergeUpdate(NO_CURVES, points(1, range(1, 9), flat(range(1, 9))));
  expect(isConstant(short, "train/loss")).toBe(false);
  const long = mergeUpdate(short, points(2, range(6, 9), flat(range(6, 9))));
  expect(isConstant(long, "train/loss")).toBe(true);
  expect(isConstant(mergeUpdate(long, points(2, [10], { values: [0.8] })), "train/loss")).toBe(false);
  expect(isConstant(mergeUpdate(NO_CURVES, points(1, range(1, 20), { values: range(1, 20).map(() => Number.NaN) })), "train/loss")).toBe(false);
});
