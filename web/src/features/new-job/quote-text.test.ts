import { expect, test } from "vitest";
import { Problem, type Schemas } from "../../api/client";
import { basisText, budgetText, costText, interruptionText, quoteErrorText, timeText } from "./quote-text";

const money = (amount: string) => ({ amount, currency: "USD" });
const UNKNOWN = {
  nodes: 2, basis: "unknown", scaled_from: [], runs: 0, time_s: null, cost: null, hold: money("0.10"), max_cost: null,
  left_after_hold: null, left_after_end: null, infeasible_reason: null,
  offer: { type: "g5.xlarge", interruption: null },
  interruptions: { source: "unknown", probability: null, losses: null, machine_hours: null },
} as unknown as Schemas["QuotedOffer"];
const MEASURED: Schemas["QuotedOffer"] = {
  ...UNKNOWN, basis: "measured", runs: 3, time_s: { low: 540, expected: 600, high: 720 },
  cost: { low: money("1.80"), expected: money("2.00"), high: money("2.40") },
  left_after_hold: money("9.90"), left_after_end: money("8.00"),
};

test("a measured offer has bands, and the number of its runs", () => {
  expect(timeText(MEASURED)).toBe("10m\u00a000s (9m\u00a000s to 12m\u00a000s)");
  expect(costText(MEASURED)).toBe("$2.00 ($1.80 to $2.40)");
  expect(basisText(MEASURED)).toBe("measured, 3 runs");
  expect(basisText({ ...MEASURED, basis: "scaled", scaled_from: ["1 × g5.xlarge"] })).toBe("scaled from 1\u00a0×\u00a0g5.xlarge");
});

test("what was never measured is said to be unknown, with no time and no cost", () => {
  expect([timeText(UNKNOWN), costText(UNKNOWN), basisText(UNKNOWN)]).toEqual(["unknown", "unknown", "never measured"]);
  expect(interruptionText(UNKNOWN)).toBe("interruptions unknown");
});

test("a published band of interruptions is not passed off as a measurement", () => {
  const published = { ...UNKNOWN, offer: { ...UNKNOWN.offer, interruption: "5-10%" } };
  expect(interruptionText({ ...published, time_s: MEASURED.time_s })).toContain("not in the band");
  expect(interruptionText({ ...UNKNOWN, interruptions: { ...UNKNOWN.interruptions, source: "measured", probability: 0.25 } })).toBe("25\u00a0% interrupted (measured)");
});

test("the budget after the start and after the end, what is missing, and the worst case", () => {
  expect(budgetText(MEASURED)).toBe("$0.10 is held to start, which leaves $9.90 of the tightest budget, and $8.00 is expected to be left after the end.");
  expect(budgetText({ ...MEASURED, left_after_hold: money("-0.05") })).toContain("lacks $0.05, so the job would wait");
  expect(budgetText({ ...UNKNOWN, max_cost: money("3.00") })).toBe("$0.10 is held to start. Its limits allow at most $3.00.");
});

test("a spec with errors has no quote yet; a refusal says why", () => {
  const problem = (errors: Schemas["Problem"][]) =>
    new Problem({ type: "", title: "", status: 409, detail: "The budget is too low.", code: "budget-exceeded", hint: null, retryable: false, errors });
  expect(quoteErrorText(problem([]))).toBe("No quote: The budget is too low.");
  const wrong = { pointer: "/data/train", message: "No such folder.", code: "c", suggestion: null };
  expect(quoteErrorText(problem([wrong]))).toBe("No quote yet. data.train: No such folder.");
  expect(quoteErrorText(problem([wrong, wrong]))).toBe("No quote yet. data.train: No such folder. And 1 more error.");
});
