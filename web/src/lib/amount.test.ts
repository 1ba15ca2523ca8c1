import { expect, test } from "vitest";
import { amountProblem, typedDollars } from "./amount";

test("an amount is taken with blanks and a dollar sign, and every other text gets its own reason", () => {
  for (const good of ["3", "0", " 25.00 ", "$1.5", "0.000001", "1000000000"]) expect(amountProblem(good), good).toBe("");
  expect(typedDollars(" $ 25.00 ")).toBe("25.00");
  expect(amountProblem("")).toBe("Enter dollars, such as 25.00.");
  expect(amountProblem("-5")).toBe("Less than $0 is not possible.");
  expect(amountProblem("1,000")).toContain("“1,000” is no amount. Enter dollars as a decimal number, without commas");
  expect(amountProblem("1e5")).toContain("is no amount");
  expect(amountProblem("ten")).toContain("“ten” is no amount");
  expect(amountProblem("0.0000001")).toContain("six decimals");
  expect(amountProblem("1000000000.01")).toContain("a billion dollars is the most");
  expect(amountProblem("9".repeat(400))).toContain("a billion dollars is the most");
  expect(amountProblem("0.00", { zero: false })).toBe("Enter more than $0.");
});
