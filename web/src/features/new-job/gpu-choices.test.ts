import { expect, test } from "vitest";
import type { Schemas } from "../../api/client";
import { gpuChoices, gpuHelp } from "./gpu-choices";

const offer = (gpu: string | null, gpus: number, amount: string, more: object = {}) =>
  ({ gpu, gpus, gpu_memory_mib: 24576, market: "spot", available: true, price_per_hour: { amount, currency: "USD" }, ...more }) as unknown as Schemas["Offer"];

test("each GPU and number of GPUs that can be rented is a choice, at the price of its cheapest machine", () => {
  const offers = [offer(null, 0, "0.10"), offer("L4", 1, "0.40"), offer("L4", 1, "0.50"), offer("L4", 4, "2.10", { market: "on_demand" })];
  expect(gpuChoices([...offers, offer("H100", 8, "30", { available: false })])).toEqual([
    { value: "L4", label: "24\u00a0GB each, from $0.40 per hour (spot)" },
    { value: "L4:4", label: "24\u00a0GB each, from $2.10 per hour (on demand)" },
  ]);
});

test("a service without GPUs says so, and one whose offers aren't known yet doesn't", () => {
  expect(gpuHelp([])).toContain("No provider");
  expect(gpuHelp(undefined)).toContain("24GB..");
});
