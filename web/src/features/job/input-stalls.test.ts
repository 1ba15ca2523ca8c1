import { expect, test } from "vitest";
import { mergeUpdate, NO_CURVES } from "../../live/curves";
import { describeStalls } from "./input-stalls";

function stall(name: string, values: number[]) {
  const steps = values.map((_, i) => i + 1);
  return { name, generation: null, machine: null, rolled_back: false, steps, times: steps, values };
}

test("the seconds of each cause are summed over the run", () => {
  const update = { generation: 1, curves: [stall("stall/download_s", [1.5, 2]), stall("stall/decode_s", [100, 0]), stall("stall/upload_s", [0, 0])] };
  expect(describeStalls(mergeUpdate(NO_CURVES, update))).toBe("Waited for input: 3.5\u00a0s downloading shards, 1m\u00a040s decoding images.");
});

test("a run that doesn't tell has no line", () => {
  expect(describeStalls(NO_CURVES)).toBe("");
});
