import { describe, expect, test } from "vitest";
import { type Curve, type Curves, drawn, EMPTY, merge, names, notches, onMachines } from "./curves";

function curve(steps: number[], options: Partial<Curve> = {}): Curve {
  return { name: "train/loss", generation: null, machine: null, lost: false, steps, times: steps.map((step) => 1000 + step), values: steps.map((step) => step / 10), ...options };
}

function points(generation: number, steps: number[], options: Partial<Curve> = {}) {
  return { generation, curves: [curve(steps, options)] };
}

const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i);
const kept = (curves: Curves) => drawn(curves, "train/loss").kept.steps;

describe("merge", () => {
  test("what comes in order is appended", () => {
    const curves = [points(1, [1, 2]), points(1, [3]), points(1, [4, 5])].reduce(merge, EMPTY);
    expect(kept(curves)).toEqual([1, 2, 3, 4, 5]);
  });

  test("the same again, or overlapping, changes nothing", () => {
    const once = merge(EMPTY, points(1, range(1, 50)));
    const again = [points(1, range(1, 50)), points(1, range(20, 30)), points(1, range(45, 60))].reduce(merge, once);
    expect(kept(again)).toEqual(range(1, 60));
  });

  test("what comes late takes its place", () => {
    const curves = [points(1, [5, 6]), points(1, [1, 2]), points(1, [4]), points(1, [3, 7])].reduce(merge, EMPTY);
    expect(kept(curves)).toEqual(range(1, 7));
    expect(drawn(curves, "train/loss").kept.values).toEqual(range(1, 7).map((step) => step / 10));
  });

  test("steps within one message may be in any order", () => {
    expect(kept(merge(EMPTY, points(1, [3, 1, 2])))).toEqual([1, 2, 3]);
  });

  test("any order of any cut gives one result", () => {
    let state = 7;
    const random = () => (state = (state * 1103515245 + 12345) % 2147483648) / 2147483648;
    const generations = [{ no: 1, attempt: 1, start_step: 0 }, { no: 2, attempt: 2, start_step: 30 }];
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
      const curves = merge(shuffled.reduce(merge, EMPTY), { curves: [], generations });
      const { kept, lost } = drawn(curves, "train/loss");
      expect(kept.steps).toEqual(range(1, 60));
      expect(lost.map((line) => line.steps)).toEqual([range(30, 40)]);
    }
  });

  test("an older reading is not changed by what came after it", () => {
    const before = merge(EMPTY, points(1, [1, 2]));
    merge(before, points(1, [3]));
    merge(before, points(1, [9]));
    const after = merge(before, points(1, [5]));
    expect(kept(before)).toEqual([1, 2]);
    expect(kept(after)).toEqual([1, 2, 5]);
  });

  test("thousands of small messages stay in order", () => {
    let curves = EMPTY;
    for (let step = 1; step <= 5000; step++) curves = merge(curves, points(1, [step]));
    expect(kept(curves)).toEqual(range(1, 5000));
  });

  test("NaN and infinities, which JSON has as text, arrive", () => {
    const values = [0.5, "NaN", "Infinity", "-Infinity"] as unknown as number[];
    const curves = merge(EMPTY, points(1, [1, 2, 3, 4], { values }));
    expect(drawn(curves, "train/loss").kept.values).toEqual([0.5, Number.NaN, Infinity, -Infinity]);
  });
});

describe("generations", () => {
  test("each owns the steps up to where its successor began", () => {
    const curves = [
      points(1, range(1, 12)),
      { curves: [], generations: [{ no: 1, attempt: 1, start_step: 0 }, { no: 2, attempt: 2, start_step: 10 }] },
      points(2, range(11, 15), { values: range(11, 15).map(() => 7) }),
    ].reduce(merge, EMPTY);
    const { kept, lost } = drawn(curves, "train/loss");
    expect(kept.steps).toEqual(range(1, 15));
    expect(kept.values[10]).toBe(7);
    expect(lost.map((line) => line.steps)).toEqual([[10, 11, 12]]);
  });

  test("a successor that has not stepped yet ends its predecessor's part already", () => {
    const curves = merge(merge(EMPTY, points(1, range(1, 12))), {
      curves: [],
      generations: [{ no: 1, attempt: 1, start_step: 0 }, { no: 2, attempt: 2, start_step: 8 }],
    });
    expect(drawn(curves, "train/loss").kept.steps).toEqual(range(1, 8));
  });

  test("one not told of yet began before its first point", () => {
    const curves = [points(1, range(1, 12)), points(2, [9, 10])].reduce(merge, EMPTY);
    expect(kept(curves)).toEqual(range(1, 10));
    expect(notches(curves)).toMatchObject([{ generation: 2, step: 8 }]);
  });

  test("what an old one still sends is lost work, never the curve", () => {
    const curves = [points(2, range(9, 20)), points(1, range(1, 14)), points(1, [15, 16])].reduce(merge, EMPTY);
    const { kept, lost } = drawn(curves, "train/loss");
    expect(kept.steps).toEqual(range(1, 20));
    expect(lost[0]!.steps).toEqual(range(8, 16));
  });

  test("one that went further back takes all from there", () => {
    const generations = [
      { no: 1, attempt: 1, start_step: 0 },
      { no: 2, attempt: 1, start_step: 20 },
      { no: 3, attempt: 2, start_step: 10 },
    ];
    const curves = [points(1, range(1, 25)), points(2, range(21, 30)), points(3, range(11, 12)), { curves: [], generations }].reduce(merge, EMPTY);
    expect(kept(curves)).toEqual(range(1, 12));
    expect(notches(curves).map(({ newAttempt }) => newAttempt)).toEqual([false, true]);
  });
});

test("a machine's own series belong to no generation and to each machine by itself", () => {
  const load = (machine: string, steps: number[]) => ({ generation: 1, curves: [curve(steps, { name: "system/cpu_percent", machine })] });
  const curves = [load("a", [5, 10]), load("b", [5, 10]), load("a", [15])].reduce(merge, EMPTY);
  expect(onMachines(curves, "system/cpu_percent").map(({ machine, line }) => [machine, line.times])).toEqual([
    ["a", [1005, 1010, 1015]],
    ["b", [1005, 1010]],
  ]);
  expect(notches(curves)).toEqual([]);
});

test("validation comes first and the machines' load last", () => {
  const reading = { generation: 1, curves: ["system/x", "epoch", "train/loss", "val/acc"].map((name) => curve([1], { name })) };
  expect(names(merge(EMPTY, reading))).toEqual(["val/acc", "train/loss", "epoch", "system/x"]);
});
