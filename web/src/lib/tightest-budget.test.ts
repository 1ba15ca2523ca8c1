// SPDX-License-Identifier: Apache-2.0
import { expect, test } from "vitest";
import { type Budget } from "../api/queries";
import { tightestBudget } from "./tightest-budget";

const budget = (kind: string, owner: string, left: string | null) =>
  ({ kind, owner, left: left === null ? null : { amount: left, currency: "USD" } }) as unknown as Budget;

test("what is left is that of the budgets that pay for one's own jobs", () => {
  const all = [budget("organization", "home", null), budget("team", "lab", "14.93"), budget("member", "ada", "5.01"), budget("member", "ben", null)];
  expect(tightestBudget(all, "ben")?.owner).toBe("lab");
  expect(tightestBudget(all, "ada")?.owner).toBe("ada");
  expect(tightestBudget([...all, budget("job", "a job", "0.10")], undefined)?.owner).toBe("lab");
});
