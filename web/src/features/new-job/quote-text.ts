/** The words of a quote: times and costs as bands, where they come from, and what the budget has left. */
import { Problem, type Schemas } from "../../api/client";
import { formatDollars, toMicro } from "../../lib/money";
import { counted, formatPercent } from "../../lib/number";
import { formatDuration } from "../../lib/time";
import { unbroken } from "../../lib/unbroken";

type QuotedOffer = Schemas["QuotedOffer"];

const NOT_POSSIBLE: Record<string, string> = {
  slots: "too few slots",
  batch: "batch too small",
  rate: "above the hourly limit",
  budget: "too expensive",
  time: "too slow",
};

export function machinesText({ nodes, offer }: QuotedOffer): string {
  return unbroken(`${nodes} × ${offer.type}`);
}

/** The GPUs of each machine, or that it has none. */
export function gpuText({ offer }: QuotedOffer): string {
  return offer.gpu ? unbroken(`${offer.gpus} × ${offer.gpu} each`) : "no GPU";
}

/** Provider and zone, or region where there are no zones; each once. */
export function placeText({ offer }: QuotedOffer): string {
  return [...new Set([offer.provider, offer.zone || offer.region])].join(" ");
}

export function timeText({ time_s }: QuotedOffer): string {
  return time_s ? `${formatDuration(time_s.expected)} (${formatDuration(time_s.low)} to ${formatDuration(time_s.high)})` : "unknown";
}

export function costText({ cost }: QuotedOffer): string {
  return cost ? `${formatDollars(cost.expected)} (${formatDollars(cost.low)} to ${formatDollars(cost.high)})` : "unknown";
}

export function basisText({ basis, runs, scaled_from }: QuotedOffer): string {
  if (basis === "unknown") return "never measured";
  return basis === "measured" ? `measured, ${runs} ${runs === 1 ? "run" : "runs"}` : unbroken(`scaled from ${scaled_from.join(", ")}`);
}

export function notPossibleText({ infeasible_reason }: QuotedOffer): string {
  return infeasible_reason ? (NOT_POSSIBLE[infeasible_reason] ?? infeasible_reason) : "";
}

export function interruptionText({ offer, interruptions, time_s }: QuotedOffer): string {
  if (interruptions.source === "on_demand") return "not interrupted";
  if (interruptions.probability !== null) return `${formatPercent(interruptions.probability)} interrupted (measured)`;
  const known = offer.interruption ? `${offer.interruption} of such machines are interrupted in a month` : "interruptions unknown";
  return time_s ? `${known}; not in the band` : known;
}

/** What starting on an offer does to the tightest budget. */
export function budgetText({ hold, left_after_hold, left_after_end, max_cost }: QuotedOffer): string {
  const held = `${formatDollars(hold)} is held to start`;
  const most = max_cost ? ` Its limits allow at most ${formatDollars(max_cost)}.` : "";
  if (!left_after_hold) return `${held}.${most}`;
  const missing = -toMicro(left_after_hold.amount);
  if (missing > 0n) return `${held}: the budget lacks ${formatDollars(missing)}, so the job would wait.${most}`;
  const after = left_after_end ? `, and ${formatDollars(left_after_end)} is expected to be left after the end` : "";
  return `${held}, which leaves ${formatDollars(left_after_hold)} of the tightest budget${after}.${most}`;
}

/** Why there is no quote: that a spec being typed is not valid is for Validate to say. */
export function quoteErrorText(error: Error): string {
  const [first, ...more] = error instanceof Problem ? error.document.errors : [];
  if (first) return `No quote yet. ${first.pointer.slice(1).replaceAll("/", ".") || "Spec"}: ${first.message}${more.length > 0 ? ` And ${counted(more.length, "more error")}.` : ""}`;
  return `No quote: ${error.message}`;
}
