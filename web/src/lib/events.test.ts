import { expect, test } from "vitest";
import { tellEvent } from "./events";

const slots = new Map([["id-0", "m0"]]);

function told(kind: string, reason: string, data: Record<string, unknown> = {}) {
  const { head, rest } = tellEvent({ kind, reason, data }, slots);
  return `${head} · ${rest}`;
}

test.each([
  ["job", "attempt 1: 2 × local.cpu (spot)", { from: "queued", to: "launching" }, "Job launching · attempt 1: 2 × local.cpu (spot)."],
  ["machine", "", { state: "terminated", cause: "reclaimed", machine: "id-0" }, "Machine m0 terminated · taken by the provider."],
  ["machine", "", { state: "notice", machine: "id-0" }, "Machine m0 gets notice · the provider takes it back."],
  ["cost", "", { action: "held", machine: "id-0", amount: "0.010959" }, "Held $0.0110 · for m0."],
  ["cost", "68.7 s of local.cpu", { state: "billed", machine: "id-0" }, "Billed · for m0: 68.7 s of local.cpu."],
  ["checkpoint", "order", { step: 1761, bytes: 789134 }, "Checkpoint at step 1,761 · before it stopped, 789 kB."],
  ["agent", "started", { step: 0, steps_total: 2697, world: 2, precision: "bf16" }, "Training starts at step 0 · of 2,697, 2 processes, bf16"],
  ["agent", "skipped", { step: 12, samples: 64 }, "Batch passed over at step 12 · the numbers broke there before"],
  ["agent", "overflow", { step: 9, scale: 32768 }, "fp16 overflow at step 9 · step skipped on all ranks, scale 32768"],
  ["sizing", "2 × local.cpu: about 2m10s.", { outcome: "chosen", nodes: 2, why_not_faster: "Why not faster? local has 2 machines in all." }, "Machines chosen · 2 × local.cpu: about 2m10s. Why not faster? local has 2 machines in all."],
  ["something_new", "happened", {}, "Something_new · happened."],
] as const)("%s %s", (kind, reason, data, sentence) => {
  expect(told(kind, reason, data)).toBe(sentence);
});

test("an event that lacks what it should have is told all the same", () => {
  for (const kind of ["job", "wait", "sizing", "machine", "generation", "checkpoint", "cost", "budget", "alarm", "agent"]) {
    expect(tellEvent({ kind, reason: "", data: {} }, slots).head).not.toBe("undefined");
  }
});
