/** The text of an event in the timeline. */
import type { Schemas } from "../api/client";
import { machineStateLabel, MACHINE_END_CAUSES } from "./labels";
import { formatDollars } from "./money";
import { formatBytes, formatCount } from "./number";

export interface EventText {
  title: string;
  detail: string;
  tone: "" | "main" | "warn";
  /** Frequent and rarely of interest, such as billing: hidden by default. */
  routine: boolean;
}

type Event = Pick<Schemas["Event"], "kind" | "reason" | "data">;

export function describeEvent({ kind, reason, data }: Event, machineLabels: ReadonlyMap<string, string>): EventText {
  const text = (name: string) => (typeof data[name] === "string" ? (data[name] as string) : "");
  const number = (name: string) => (typeof data[name] === "number" ? (data[name] as number) : null);
  const machine = machineLabels.get(text("machine"));
  const step = number("step");
  switch (kind) {
    case "job":
      return eventText(text("to") ? `Job ${text("to").replaceAll("_", " ")}` : "Job", reason, "main");
    case "wait":
      return eventText("Waiting", reason);
    case "sizing":
      return eventText("Machines chosen", [reason, text("why_not_faster")].filter(Boolean).join(" "));
    case "machine":
      return describeMachineEvent(text("state"), machine, text("cause"), reason);
    case "generation": {
      const exited = text("state") === "exited";
      return eventText(`Generation ${text("state") || "changed"}`, [exited && machine, reason].filter(Boolean).join(" "), "", exited);
    }
    case "checkpoint": {
      const size = number("bytes");
      const title = step === null ? "Checkpoint" : `Checkpoint at step ${formatCount(step)}`;
      return eventText(title, [CHECKPOINT_REASONS[reason] ?? reason, size === null ? "" : formatBytes(size)].filter(Boolean).join(", "));
    }
    case "cost": {
      const amount = text("amount");
      const title = amount ? `${capitalize(text("action"))} ${formatDollars({ amount, currency: "USD" })}` : capitalize(text("state") || "cost");
      return eventText(title, [machine && `for ${machine}`, reason].filter(Boolean).join(": "), "", text("state") !== "settled");
    }
    case "budget":
      return eventText("Budget", reason);
    case "alarm":
      return eventText("Alarm", reason, "warn");
    case "agent":
      return describeAgentEvent(reason, data, machine, step);
    default:
      return eventText(capitalize(kind.replaceAll("_", " ")), reason);
  }
}

const CHECKPOINT_REASONS: Record<string, string> = { periodic: "periodic", order: "before stopping", final: "final" };
const ROUTINE_MACHINE_STATES = new Set(["planned", "launching", "registered"]);

function describeMachineEvent(state: string, machine: string | undefined, cause: string, reason: string): EventText {
  const subject = machine ? `Machine ${machine}` : "Machine";
  if (state === "notice") return eventText(`${subject}: preemption notice`, reason || "the provider will terminate it", "warn");
  const detail = [MACHINE_END_CAUSES[cause] ?? cause, reason].filter(Boolean).join(", ");
  return eventText(`${subject} ${machineStateLabel(state) || "changed"}`, detail, "", ROUTINE_MACHINE_STATES.has(state));
}

function describeAgentEvent(event: string, data: Record<string, unknown>, machine: string | undefined, step: number | null): EventText {
  const at = step === null ? "" : ` at step ${formatCount(step)}`;
  const onMachine = machine ? ` on ${machine}` : "";
  const message = typeof data.message === "string" ? data.message : "";
  switch (event) {
    case "started": {
      const facts = [typeof data.steps_total === "number" && `of ${formatCount(data.steps_total)}`, typeof data.world === "number" && `${data.world} processes`, data.precision];
      return eventText(`Training started${at}`, facts.filter(Boolean).join(", "), "main");
    }
    case "overflow":
      return eventText(`fp16 overflow${at}`, `step skipped on all ranks${data.scale ? `, loss scale ${String(data.scale)}` : ""}`, "warn");
    case "skipped":
      return eventText(`Batch skipped${at}`, "it caused NaN/Inf before", "warn");
    case "preemption_notice":
      return eventText(`Preemption notice${onMachine}`, "all ranks save a checkpoint and stop", "warn");
    case "rejected":
      return eventText(`Report rejected${onMachine}`, message, "warn", true);
    case "log_quota":
      return eventText(`Log quota reached${onMachine}`, message, "warn");
    default:
      return eventText(`${capitalize(event.replaceAll("_", " "))}${onMachine}${at}`, message, event === "warning" ? "warn" : "");
  }
}

function eventText(title: string, detail: string, tone: EventText["tone"] = "", routine = false): EventText {
  return { title, detail: detail === title ? "" : withFullStop(detail), tone, routine };
}

function capitalize(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

function withFullStop(text: string): string {
  return text && /[\p{L}\d)]$/u.test(text) ? `${text}.` : text;
}
