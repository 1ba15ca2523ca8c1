import type { Schemas } from "../../api/client";
import { formatDollars } from "../../lib/money";
import { unbroken } from "../../lib/unbroken";

type Offer = Schemas["Offer"];

/** What `resources.gpu` may be here: each GPU and number of them that a machine has, at its cheapest, best first. */
export function gpuChoices(offers: readonly Offer[]): { value: string; label: string }[] {
  const cheapest = new Map<string, Offer>();
  for (const offer of offers) {
    if (!offer.available || !offer.gpu) continue;
    const choice = offer.gpus === 1 ? offer.gpu : `${offer.gpu}:${offer.gpus}`;
    if (!cheapest.has(choice)) cheapest.set(choice, offer); // the list has the cheapest first
  }
  return [...cheapest].map(([value, { gpu_memory_mib, price_per_hour, market }]) => ({
    value,
    label: `${unbroken(`${Math.floor(gpu_memory_mib / 1024)} GB`)} each, from ${formatDollars(price_per_hour)} per hour (${market.replace("_", " ")})`,
  }));
}

export function gpuHelp(choices: readonly { value: string }[] | undefined): string {
  if (choices?.length === 0) return "No provider of this service has machines with GPUs.";
  return "Of each machine: a model (A100:8 for eight), a memory size (24GB..), any, or alternatives with commas.";
}
