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
}

interface Event {
  kind: string;
  reason: Schemas["Reason"] | null;
  data: object;
}

const ROUTINE_MACHINE_STATES = new Set(["planned", "launching", "registered"]);

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
      if (state === "notice") return eventText(`${subject}: preemption notice`, sentence, "warn");
      return eventText(`${subject} ${machineStateLabel(state) || "changed"}`, sentence, "", ROUTINE_MACHINE_STATES.has(state));
    }
    case "generation": {
      const exited = text("state") === "exited";
      return eventText(`Generation ${text("state") || "changed"}`, exited && machine ? `${machine}: ${sentence}` : sentence, "", exited);
    }
    case "checkpoint": {
      const [step, size] = [number("step"), number("bytes")];
      const title = step === null ? "Checkpoint" : `Checkpoint at step ${formatCount(step)}`;
      return eventText(title, [sentence, size === null ? "" : formatBytes(size)].filter(Boolean).join(" "));
    }
    case "cost": {
      const [amount, action] = [text("amount"), text("action")];
      const title = amount ? `${capitalize(action)} ${formatDollars({ amount, currency: "USD" })}` : capitalize(action.replace("job_", ""));
      return eventText(title, [machine && `for ${machine}`, sentence].filter(Boolean).join(": "), "", action !== "job_settled");
    }
    case "budget":
      return eventText("Budget", sentence);
    case "alarm":
      return eventText("Alarm", sentence, "warn");
    case "agent":
      return describeAgentEvent(text("event"), sentence, machine, number("step"));
    default:
      return eventText(capitalize(kind.replaceAll("_", " ")), sentence);
  }
}

const AGENT_TITLES: Record<string, string> = { started: "Training started", gradient_overflow: "Gradient overflow", skipped: "Batch skipped" };
const AGENT_WARNINGS = new Set(["gradient_overflow", "skipped", "preemption_notice", "rejected", "log_quota", "warning"]);

function describeAgentEvent(event: string, sentence: string, machine: string | undefined, step: number | null): EventText {
  const ofAllRanks = event in AGENT_TITLES;
  const title = AGENT_TITLES[event] ?? capitalize(event.replaceAll("_", " ") || "agent");
  const where = [!ofAllRanks && machine ? ` on ${machine}` : "", step === null ? "" : ` at step ${formatCount(step)}`].join("");
  const tone = event === "started" ? "main" : AGENT_WARNINGS.has(event) ? "warn" : "";
  return eventText(`${title}${where}`, sentence, tone, event === "rejected");
}

function eventText(title: string, detail: string, tone: EventText["tone"] = "", routine = false): EventText {
  return { title, detail, tone, routine };
}

function capitalize(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}
