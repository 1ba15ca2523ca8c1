/** What an event of the feed says to people. */
import type { Schemas } from "../api/client";
import { dollars } from "./money";
import { bytes, count } from "./number";

export interface Told {
  head: string;
  rest: string;
  tone: "" | "main" | "warn";
  /** Repeats often and says little: hidden at first. */
  routine: boolean;
}

export function tellEvent({ kind, reason, data }: Pick<Schemas["Event"], "kind" | "reason" | "data">, slots: ReadonlyMap<string, string>): Told {
  const text = (name: string) => (typeof data[name] === "string" ? (data[name] as string) : "");
  const number = (name: string) => (typeof data[name] === "number" ? (data[name] as number) : null);
  const machine = slots.get(text("machine"));
  const told = (head: string, rest = reason, tone: Told["tone"] = "", routine = false): Told => ({ head, rest: rest === head ? "" : sentence(rest), tone, routine });
  const step = number("step");
  switch (kind) {
    case "job":
      return told(text("to") ? `Job ${text("to").replaceAll("_", " ")}` : "Job", reason, "main");
    case "wait":
      return told("Waits", reason);
    case "sizing":
      return told("Machines chosen", [reason, text("why_not_faster")].filter(Boolean).join(" "));
    case "machine":
      return tellMachine(text("state"), machine, text("cause"), reason);
    case "generation":
      return told(`Generation ${text("state") || "changed"}`, [text("state") === "exited" && machine, reason].filter(Boolean).join(" "), "", text("state") === "exited");
    case "checkpoint":
      return told(step === null ? "Checkpoint" : `Checkpoint at step ${count(step)}`, [CHECKPOINTS[reason] ?? reason, number("bytes") === null ? "" : bytes(number("bytes")!)].filter(Boolean).join(", "));
    case "cost": {
      const head = text("amount") ? `${capital(text("action"))} ${dollars({ amount: text("amount"), currency: "USD" })}` : capital(text("state") || "cost");
      return told(head, [machine && `for ${machine}`, reason].filter(Boolean).join(": "), "", text("state") !== "settled");
    }
    case "budget":
      return told("Budget", reason);
    case "alarm":
      return told("Alarm", reason, "warn");
    case "agent":
      return tellAgent(reason, data, machine, step);
    default:
      return told(capital(kind), reason);
  }
}

/** Why a machine ended. */
export const END_CAUSES: Record<string, string> = {
  reclaimed: "taken by the provider",
  requested: "ended by us",
  exited: "left when done",
  crashed: "crashed",
};

const CHECKPOINTS: Record<string, string> = { periodic: "periodic", order: "before it stopped", final: "the result" };
const ROUTINE_STATES = new Set(["planned", "calling", "registered"]);

function tellMachine(state: string, machine: string | undefined, cause: string, reason: string): Told {
  const who = machine ? `Machine ${machine}` : "Machine";
  if (state === "notice") return { head: `${who} gets notice`, rest: sentence(reason || "the provider takes it back"), tone: "warn", routine: false };
  return { head: `${who} ${state || "changed"}`, rest: sentence([END_CAUSES[cause] ?? cause, reason].filter(Boolean).join(", ")), tone: "", routine: ROUTINE_STATES.has(state) };
}

function tellAgent(event: string, data: Record<string, unknown>, machine: string | undefined, step: number | null): Told {
  const at = step === null ? "" : ` at step ${count(step)}`;
  const who = machine ? ` on ${machine}` : "";
  const message = typeof data.message === "string" ? data.message : "";
  switch (event) {
    case "started": {
      const facts = [typeof data.steps_total === "number" && `of ${count(data.steps_total)}`, typeof data.world === "number" && `${data.world} processes`, data.precision].filter(Boolean);
      return { head: `Training starts${at}`, rest: facts.join(", "), tone: "main", routine: false };
    }
    case "overflow":
      return { head: `fp16 overflow${at}`, rest: `step skipped on all ranks${data.scale ? `, scale ${String(data.scale)}` : ""}`, tone: "warn", routine: false };
    case "skipped":
      return { head: `Batch passed over${at}`, rest: "the numbers broke there before", tone: "warn", routine: false };
    case "notice":
      return { head: `Spot notice${who}`, rest: "all ranks save and stop", tone: "warn", routine: false };
    case "rejected":
      return { head: `A report was refused${who}`, rest: message, tone: "warn", routine: true };
    case "log_quota":
      return { head: `Log quota reached${who}`, rest: message, tone: "warn", routine: false };
    default:
      return { head: `${capital(event.replaceAll("_", " "))}${who}${at}`, rest: message, tone: event === "warning" ? "warn" : "", routine: false };
  }
}

function capital(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

function sentence(text: string): string {
  return text && /[\p{L}\d)]$/u.test(text) ? `${text}.` : text;
}
