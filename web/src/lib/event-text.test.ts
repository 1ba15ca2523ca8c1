import { expect, test } from "vitest";
import { describeEvent, groupRepeats } from "./event-text";

const slots = new Map([["id-0", "m0"]]);

function describe(kind: string, sentence: string, data: Record<string, unknown> = {}) {
  return describeEvent({ kind, reason: sentence ? { code: "a_code", facts: {}, text: sentence } : null, data }, slots);
}

test.each([
  ["job", "§", { from: "queued", to: "launching" }, "Job launching", "§"],
  ["machine", "§", { state: "terminated", cause: "preempted", machine: "id-0" }, "Machine m0 terminated", "§"],
  ["machine", "§", { state: "launching", machine: "id-0" }, "Machine m0: not launched yet", "§"],
  ["machine", "§", { state: "notice", machine: "id-0" }, "Machine m0: preemption notice", "§"],
  ["machine", "§", { state: "left", machine: "id-0" }, "Machine m0: left to its provider", "§"],
  ["cost", "", { action: "held", machine: "id-0", amount: "0.010959" }, "Held $0.0110", "for m0"],
  ["cost", "§", { action: "billed", machine: "id-0" }, "Billed", "for m0: §"],
  ["checkpoint", "§", { step: 1761, bytes: 789134 }, "Checkpoint at step 1,761", "§ 789\u00a0kB"],
  ["agent", "§", { event: "started", step: 0, machine: "id-0" }, "Training started at step 0", "§"],
  ["agent", "§", { event: "skipped", step: 12 }, "Batch skipped at step 12", "§"],
  ["agent", "§", { event: "preemption_notice", step: null, machine: "id-0" }, "Preemption notice on m0", "§"],
  ["agent", "§", { event: "something_new", machine: "id-0" }, "Something new on m0", "§"],
  ["sizing", "§", { outcome: "chosen", nodes: 2 }, "Machines chosen", "§"],
  ["something_new", "§", {}, "Something new", "§"],
] as const)("%s: the title comes from the data and the sentence from the server", (kind, sentence, data, title, detail) => {
  expect(describe(kind, sentence, data)).toMatchObject({ title, detail });
});

test("the tone and whether an event is routine never depend on its sentence", () => {
  expect(describe("agent", "§", { event: "gradient_overflow" }).tone).toBe("warn");
  expect(describe("machine", "§", { state: "registered" }).routine).toBe(true);
  expect(describe("machine", "§", { state: "launching" })).toMatchObject({ routine: false, tone: "warn" });
  expect(describe("alarm", "§").tone).toBe("warn");
});

test("an event with missing data still has a title", () => {
  for (const kind of ["job", "wait", "sizing", "machine", "generation", "checkpoint", "cost", "budget", "weight", "guaranteed_rate", "concurrency", "alarm", "agent"]) {
    expect(describe(kind, "").title).not.toBe("undefined");
  }
});

test("checkpoints and skipped batches in a row are one entry; what comes between ends the row", () => {
  const checkpoint = (step: number, trigger = "periodic") =>
    describeEvent({ kind: "checkpoint", reason: { code: "checkpoint_saved", facts: { trigger, step }, text: "§" }, data: { step, bytes: 1 } }, slots);
  const skipped = (step: number) => describe("agent", "§", { event: "skipped", step });
  const running = describe("job", "§", { to: "running" });
  const groups = groupRepeats([checkpoint(30, "final"), checkpoint(1200), checkpoint(20), checkpoint(10), running, checkpoint(5), skipped(4), skipped(3), running, running]);
  expect(groups.map(({ title, events }) => [title, events.length])).toEqual([
    ["Checkpoint at step 30", 1],
    ["3 checkpoints, steps 10 to 1,200", 3],
    ["Job running", 1],
    ["Checkpoint at step 5", 1],
    ["2 batches skipped, steps 3 to 4", 2],
    ["Job running", 1],
    ["Job running", 1],
  ]);
});
