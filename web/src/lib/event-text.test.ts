import { expect, test } from "vitest";
import { describeEvent } from "./event-text";

const slots = new Map([["id-0", "m0"]]);

function textOf(kind: string, reason: string, data: Record<string, unknown> = {}) {
  const { title, detail } = describeEvent({ kind, reason, data }, slots);
  return `${title} · ${detail}`;
}

test.each([
  ["job", "attempt 1: 2 × local.cpu (spot)", { from: "queued", to: "launching" }, "Job launching · attempt 1: 2 × local.cpu (spot)."],
  ["machine", "", { state: "terminated", cause: "preempted", machine: "id-0" }, "Machine m0 terminated · preempted."],
  ["machine", "", { state: "notice", machine: "id-0" }, "Machine m0: preemption notice · the provider will terminate it."],
  ["cost", "", { action: "held", machine: "id-0", amount: "0.010959" }, "Held $0.0110 · for m0."],
  ["cost", "68.7 s of local.cpu", { state: "billed", machine: "id-0" }, "Billed · for m0: 68.7 s of local.cpu."],
  ["checkpoint", "order", { step: 1761, bytes: 789134 }, "Checkpoint at step 1,761 · before stopping, 789 kB."],
  ["agent", "started", { step: 0, steps_total: 2697, world: 2, precision: "bf16" }, "Training started at step 0 · of 2,697, 2 processes, bf16."],
  ["agent", "skipped", { step: 12, samples: 64 }, "Batch skipped at step 12 · it caused NaN/Inf before."],
  ["agent", "overflow", { step: 9, scale: 32768 }, "fp16 overflow at step 9 · step skipped on all ranks, loss scale 32768."],
  ["sizing", "2 × local.cpu: about 2m10s.", { outcome: "chosen", nodes: 2, why_not_faster: "Why not faster? local has 2 machines in all." }, "Machines chosen · 2 × local.cpu: about 2m10s. Why not faster? local has 2 machines in all."],
  ["something_new", "happened", {}, "Something new · happened."],
] as const)("%s %s", (kind, reason, data, sentence) => {
  expect(textOf(kind, reason, data)).toBe(sentence);
});

test("an event with missing data still has a title", () => {
  for (const kind of ["job", "wait", "sizing", "machine", "generation", "checkpoint", "cost", "budget", "alarm", "agent"]) {
    expect(describeEvent({ kind, reason: "", data: {} }, slots).title).not.toBe("undefined");
  }
});
