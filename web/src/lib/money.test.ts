import { expect, test } from "vitest";
import { formatDollars, formatExact, toMicro, fractionOf, sumMicro } from "./money";

const usd = (amount: string) => ({ amount, currency: "USD" });

test.each([
  ["0.00", "$0.00"],
  ["0.000001", "<$0.0001"],
  ["0.001316", "$0.0013"],
  ["0.50", "$0.50"],
  ["0.99999", "$1.00"],
  ["0.9750", "$0.9750"],
  ["1.00", "$1.00"],
  ["3.005", "$3.01"],
  ["12.345678", "$12.35"],
  ["1234567.891", "$1,234,567.89"],
  ["-2.50", "−$2.50"],
  ["-0.0013", "−$0.0013"],
])("%s is read as %s", (amount, text) => {
  expect(formatDollars(usd(amount))).toBe(text);
});

test("nothing known is a dash", () => {
  expect(formatDollars(null)).toBe("–");
});

test("every digit where it counts", () => {
  expect(formatExact(usd("0.001316"))).toBe("$0.001316");
  expect(formatExact(usd("-1.5"))).toBe("−$1.5");
});

test("sums are exact where floats are not", () => {
  expect(sumMicro(usd("0.1"), usd("0.2"))).toBe(300_000n);
  expect(toMicro("999999999.999999")).toBe(999_999_999_999_999n);
});

test("a share is between 0 and 1, whatever it is of", () => {
  expect(fractionOf(1n, 4n)).toBe(0.25);
  expect(fractionOf(5n, 4n)).toBe(1);
  expect(fractionOf(0n, 0n)).toBe(0);
  expect(fractionOf(1n, 0n)).toBe(1);
});
