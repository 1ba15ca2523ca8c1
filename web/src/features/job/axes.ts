/** Where points and ticks stand, and what ticks say. */
import type uPlot from "uplot";
import { type Curves, drawn, type Line } from "../../live/curves";
import { count, isAccuracy, metric } from "../../lib/number";
import { duration } from "../../lib/time";

export type XAxis = "step" | "epoch" | "time";

export type Column = (number | null | undefined)[];
export type Place = (line: Line) => number[];

/**
 * uPlot's table: one rising x, and a column for each line. `undefined` where a line has no point (drawn across), `null`
 * where its value can't be drawn (a gap): NaN, infinities, and what isn't positive on a log axis.
 */
export function aligned(lines: readonly Line[], place: Place, log: boolean): uPlot.AlignedData {
  const columns = lines.map((line) => ({ xs: place(line), ys: line.values.map((y) => (Number.isFinite(y) && (!log || y > 0) ? y : null)) }));
  const [only, ...others] = columns;
  if (!only) return [[]];
  if (others.every(({ xs }) => xs.length === 0 || sameNumbers(xs, only.xs))) return [only.xs, ...columns.map(({ ys }) => ys)] as uPlot.AlignedData;
  const xs = [...new Set(columns.flatMap((column) => column.xs))].sort((a, b) => a - b);
  const row = new Map(xs.map((x, i) => [x, i]));
  const ys = columns.map((column) => {
    const out: Column = Array.from({ length: xs.length });
    column.xs.forEach((x, i) => {
      out[row.get(x)!] = column.ys[i]!;
    });
    return out;
  });
  return [xs, ...ys] as uPlot.AlignedData;
}

/** Epochs of steps, on the line through the steps where the epoch was reported. */
export function epochsOf(curves: Curves): (step: number) => number {
  const { steps, values } = drawn(curves, "epoch").kept;
  return (step) => {
    if (steps.length === 0) return step;
    let [low, high] = [0, steps.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle]! < step) low = middle + 1;
      else high = middle;
    }
    const before = low === 0 ? { step: 0, epoch: 0 } : { step: steps[low - 1]!, epoch: values[low - 1]! };
    const gap = steps[low]! - before.step;
    return gap > 0 ? before.epoch + ((values[low]! - before.epoch) * (step - before.step)) / gap : values[low]!;
  };
}

export function placer(curves: Curves, x: XAxis, start: number): Place {
  if (x === "time") return (line) => rising(line.times, start);
  if (x === "step") return (line) => line.steps;
  const epoch = epochsOf(curves);
  return (line) => line.steps.map(epoch);
}

/** Seconds since the start; where one machine's clock is behind another's, they stand still. */
function rising(times: readonly number[], start: number): number[] {
  let latest = -Infinity;
  return times.map((time) => (latest = Math.max(latest, time - start)));
}

export function placeText(x: XAxis, at: number): string {
  if (x === "time") return duration(at).replace(".0 s", " s");
  return x === "step" ? count(at) : String(Math.round(at * 100) / 100);
}

/** A tick with as many decimals as tell it from its neighbours. */
export function tickText(name: string, tick: number | null, step: number, log: boolean): string {
  if (tick === null) return "";
  if (name.endsWith("_bytes")) return metric(name, tick);
  const unit = isAccuracy(name) || name.endsWith("_percent") ? " %" : "";
  const scale = isAccuracy(name) ? 100 : 1;
  if (log) return `${Number((tick * scale).toPrecision(3))}${unit}`;
  if (Math.abs(tick) >= 1e5 || (step > 0 && step < 1e-5)) return metric(name, tick);
  const decimals = [0, 1, 2, 3, 4, 5, 6].find((d) => Math.abs(Math.round(step * scale * 10 ** d) - step * scale * 10 ** d) < 1e-6) ?? 6;
  return `${(tick * scale).toFixed(decimals).replace("-", "−")}${unit}`;
}

function sameNumbers(a: readonly number[], b: readonly number[]): boolean {
  return a === b || (a.length === b.length && a.every((x, i) => x === b[i]));
}
