import { expect, test } from "vitest";
import { formatBytes, formatMetric, formatValue } from "./number";
import { formatAgo, formatDuration, formatFullTime, formatTime, zoneName } from "./time";

test.each([
  [0, "0"], [0.5, "0.5000"], [-0.5, "−0.5000"], [12345.678, "12346"], [123456.7, "1.23e5"], [0.00012, "1.20e−4"], [7, "7"], ["NaN", "NaN"], ["-Infinity", "−∞"], [null, "–"],
] as const)("%s is read as %s", (n, text) => {
  expect(formatValue(n)).toBe(text);
});

test("a metric's name tells its unit", () => {
  expect(formatMetric("val/acc", 0.97314)).toBe("97.31\u00a0%");
  expect(formatMetric("system/memory_bytes", 1_530_000_000)).toBe("1.5\u00a0GB");
  expect(formatMetric("system/cpu_percent", 93.4)).toBe("93\u00a0%");
  expect(formatMetric("val/acc", "NaN")).toBe("NaN");
});

test("sizes in steps of a thousand", () => {
  expect([0, 999, 1500, 250_000_000].map(formatBytes)).toEqual(["0\u00a0B", "999\u00a0B", "1.5\u00a0kB", "250\u00a0MB"]);
});

test.each([
  [0, "0.0\u00a0s"], [4.25, "4.3\u00a0s"], [59.4, "59\u00a0s"], [75, "1m\u00a015s"], [3720, "1h\u00a002m"], [90_000, "1d\u00a001h"], [null, "–"],
])("%s seconds are %s", (seconds, text) => {
  expect(formatDuration(seconds)).toBe(text);
});

test("how long ago", () => {
  const now = Date.parse("2026-11-21T12:00:00Z");
  expect(formatAgo("2026-11-21T11:59:55Z", now)).toBe("just now");
  expect(formatAgo("2026-11-21T11:56:00Z", now)).toBe("4\u00a0min ago");
  expect(formatAgo("2026-11-21T09:00:00Z", now)).toBe("3\u00a0h ago");
});

test("a time has its date unless it is today, and its year unless it is this one", () => {
  const local = (...at: [number, number, number, number, number, number]) => new Date(...at).getTime();
  const now = local(2026, 10, 21, 12, 0, 0);
  expect(formatTime(local(2026, 10, 21, 9, 5, 1), now)).toBe("09:05:01");
  expect(formatTime(local(2026, 10, 20, 23, 59, 59), now)).toMatch(/20.*23:59:59/);
  expect(formatTime(local(2026, 10, 20, 23, 59, 59), now)).not.toContain("2026");
  expect(formatTime(local(2025, 10, 21, 9, 5, 1), now)).toContain("2025");
  expect(formatTime(null, now)).toBe("–");
});

test("a full time names the zone that columns are headed with", () => {
  expect(formatFullTime(Date.now())).toContain(zoneName());
});
