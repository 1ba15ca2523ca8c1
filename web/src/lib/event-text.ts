/** Events in the timeline: titles by the kind and data of an event; the sentence is the server's. */
import type { Schemas } from "../api/client";
import { machineStateLabel } from "./labels";
import { formatDollars } from "./money";
import { formatBytes, formatCount } from "./number";

export interface EventText {
  title: string;
  detail: string;
  tone: "" | "main" | "warn";
  /** Frequent and rarely of interest, such as billing: hidden by default. */
  routine: boolean;
  /** Events that come again and again have a noun in the plural, and those in a row are shown as one. */
  repeats?: string;
  step?: number;
}

interface Event {
  kind: string;
  reason: Schemas["Reason"] | null;
  data: object;
}

const ROUTINE_MACHINE_STATES = new Set(["planned", "registered"]);

export function describeEvent({ kind, reason, ...event }: Event, machineLabels: ReadonlyMap<string, string>): EventText {
  const data = event.data as Record<string, unknown>;
  const text = (name: string) => (typeof data[name] === "string" ? (data[name] as string) : "");
  const number = (name: string) => (typeof data[name] === "number" ? (data[name] as number) : null);
  const machine = machineLabels.get(text("machine"));
  const sentence = reason?.text ?? "";
  switch (kind) {
    case "job":
      return eventText(text("to") ? `Job ${text("to").replaceAll("_", " ")}` : "Job", sentence, "main");
    case "wait":
      return eventText("Waiting", sentence);
    case "sizing":
      return eventText("Machines chosen", sentence);
    case "machine": {
      const [subject, state] = [machine ? `Machine ${machine}` : "Machine", text("state")];
      if (state === "launching") return eventText(`${subject}: not launched yet`, sentence, "warn");
      if (state === "notice") return eventText(`${subject}: preemption notice`, sentence, "warn");
      if (state === "left") return eventText(`${subject}: left to its provider`, sentence);
      return eventText(`${subject} ${machineStateLabel(state) || "changed"}`, sentence, "", ROUTINE_MACHINE_STATES.has(state));
    }
    case "generation": {
      const exited = text("state") === "exited";
      return eventText(`Generation ${text("state") || "changed"}`, exited && machine ? `${machine}: ${sentence}` : sentence, "", exited);
    }
    case "checkpoint": {
      const [step, size] = [number("step"), number("bytes")];
      const title = step === null ? "Checkpoint" : `Checkpoint at step ${formatCount(step)}`;
      const text = eventText(title, [sentence, size === null ? "" : formatBytes(size)].filter(Boolean).join(" "));
      return step !== null && reason?.facts.trigger === "periodic" ? { ...text, repeats: "checkpoints", step } : text;
    }
    case "cost": {
      const [amount, action] = [text("amount"), text("action")];
      const title = amount ? `${capitalize(action)} ${formatDollars({ amount, currency: "USD" })}` : capitalize(action.replace("job_", ""));
      return eventText(title, [machine && `for ${machine}`, sentence].filter(Boolean).join(": "), "", action !== "job_settled");
    }
    case "budget":
    case "budget_request":
    case "soft_lines":
    case "weight":
    case "guaranteed_rate":
    case "concurrency":
      return eventText("Budget", sentence);
    case "forecast":
    case "soft_line":
      return eventText("Budget", sentence, "warn");
    case "alarm":
      return eventText("Alarm", sentence, "warn");
    case "storage":
      return eventText("Checkpoints", sentence, "warn");
    case "agent":
      return describeAgentEvent(text("event"), sentence, machine, number("step"));
    default:
      return eventText(capitalize(kind.replaceAll("_", " ")), sentence);
  }
}

const AGENT_TITLES: Record<string, string> = { started: "Training started", gradient_overflow: "Gradient overflow", skipped: "Batch skipped", exporting: "Exporting the model" };
const AGENT_REPEATS: Record<string, string> = { gradient_overflow: "gradient overflows", skipped: "batches skipped" };
const AGENT_WARNINGS = new Set(["gradient_overflow", "skipped", "preemption_notice", "rejected", "log_quota", "warning"]);

function describeAgentEvent(event: string, sentence: string, machine: string | undefined, step: number | null): EventText {
  const ofAllRanks = event in AGENT_TITLES;
  const title = AGENT_TITLES[event] ?? capitalize(event.replaceAll("_", " ") || "agent");
  const where = [!ofAllRanks && machine ? ` on ${machine}` : "", step === null ? "" : ` at step ${formatCount(step)}`].join("");
  const tone = event === "started" ? "main" : AGENT_WARNINGS.has(event) ? "warn" : "";
  const text = eventText(`${title}${where}`, sentence, tone, event === "rejected");
  const repeats = AGENT_REPEATS[event];
  return repeats !== undefined && step !== null ? { ...text, repeats, step } : text;
}

/** Runs of events that repeat, from events in any order: each with its title, such as "12 checkpoints, steps 100 to 1,200". */
export function groupRepeats<T extends EventText>(events: readonly T[]): { title: string; events: [T, ...T[]] }[] {
  const groups: { title: string; events: [T, ...T[]] }[] = [];
  for (const event of events) {
    const last = groups.at(-1);
    if (last && event.repeats && last.events[0].repeats === event.repeats) last.events.push(event);
    else groups.push({ title: event.title, events: [event] });
  }
  for (const group of groups) {
    if (group.events.length === 1) continue;
    const steps = group.events.map(({ step }) => step ?? 0);
    const [first, last] = [Math.min(...steps), Math.max(...steps)].map(formatCount);
    group.title = `${group.events.length} ${group.events[0].repeats}, steps ${first} to ${last}`;
  }
  return groups;
}

function eventText(title: string, detail: string, tone: EventText["tone"] = "", routine = false): EventText {
  return { title, detail, tone, routine };
}

function capitalize(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}
