import { expect, test } from "vitest";
import { smooth } from "./smooth";

test.each([0, 0.3, 0.9, 0.99, 0.999])("a constant stays that constant at weight %d", (weight) => {
  const xs = [0, 1, 2, 10, 11, 500, 501];
  for (const y of smooth(xs, xs.map(() => 0.7), weight)) expect(y).toBeCloseTo(0.7, 12);
});

test("weight 0 changes nothing", () => {
  expect(smooth([1, 2, 3], [5, -1, 2], 0)).toEqual([5, -1, 2]);
});

test("on even spacing it is the debiased moving average", () => {
  const [a, b, c] = smooth([1, 2, 3], [1, 2, 4], 0.5);
  expect(a).toBeCloseTo(1, 12);
  expect(b).toBeCloseTo((0.25 * 1 + 0.5 * 2) / 0.75, 12);
  expect(c).toBeCloseTo((0.125 * 1 + 0.25 * 2 + 0.5 * 4) / 0.875, 12);
});

test("a wide gap forgets more than a narrow one", () => {
  const narrow = smooth([0, 1, 2, 3, 4], [0, 0, 0, 0, 1], 0.9).at(-1)!;
  const wide = smooth([0, 1, 2, 3, 60], [0, 0, 0, 0, 1], 0.9).at(-1)!;
  expect(wide).toBeGreaterThan(narrow);
});

test("NaN shows where it is and spoils nothing after it", () => {
  const out = smooth([1, 2, 3, 4], [1, Number.NaN, Infinity, 1], 0.9);
  expect(out[1]).toBeNaN();
  expect(out[2]).toBe(Infinity);
  expect(out[3]).toBeCloseTo(1, 12);
});

test("points at one place don't break it", () => {
  expect(smooth([1, 1, 1], [2, 2, 2], 0.9)).toEqual([2, 2, 2]);
  expect(smooth([], [], 0.9)).toEqual([]);
});
