/** Positions of points and texts of ticks on the plot axes. */
import type uPlot from "uplot";
import { type Curves, splitCurve, type Line } from "../../live/curves";
import { formatCount, isAccuracy, formatMetric } from "../../lib/number";
import { formatDuration } from "../../lib/time";
import { unbroken } from "../../lib/unbroken";

export type XAxis = "step" | "epoch" | "time";

export type Column = (number | null | undefined)[];
export type PositionOf = (line: Line) => number[];

/**
 * uPlot's table: one rising x, and a column for each line. `undefined` where a line has no point (drawn across), `null`
 * where its value can't be drawn (a gap): NaN, infinities, and what isn't positive on a log axis.
 */
export function alignLines(lines: readonly Line[], place: PositionOf, log: boolean): uPlot.AlignedData {
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
export function epochInterpolator(curves: Curves): (step: number) => number {
  const { steps, values } = splitCurve(curves, "epoch").merged;
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

export function makePositionOf(curves: Curves, x: XAxis, start: number): PositionOf {
  if (x === "time") return (line) => rising(line.times, start);
  if (x === "step") return (line) => line.steps;
  const epoch = epochInterpolator(curves);
  return (line) => line.steps.map(epoch);
}

/** Seconds since the start; where one machine's clock is behind another's, they stand still. */
function rising(times: readonly number[], start: number): number[] {
  let latest = -Infinity;
  return times.map((time) => (latest = Math.max(latest, time - start)));
}

/** A position; before the first step, where machines are measured already, times are negative. */
export function formatPosition(x: XAxis, at: number): string {
  if (x === "time") return `${at < 0 ? "−" : ""}${formatDuration(Math.abs(at)).replace(/\.0(?=\s)/, "")}`;
  return x === "step" ? formatCount(at) : String(Math.round(at * 100) / 100);
}

/** Distances of ticks on an axis that has its own: steps are whole, and times have seconds, minutes and hours. */
export const TICK_DISTANCES: Partial<Record<XAxis, number[]>> = {
  step: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11].flatMap((power) => [1, 2, 5].map((n) => n * 10 ** power)),
  time: [0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400, 172_800, 604_800],
};

/** The texts of an axis's ticks: of two that would read the same only the first has one. */
export function tickTexts(ticks: readonly (number | null)[], format: (tick: number) => string): string[] {
  const texts = ticks.map((tick) => (tick === null ? "" : format(tick)));
  return texts.map((text, i) => (texts.indexOf(text) < i ? "" : text));
}

/** The width of a vertical axis, in pixels, with room for the longest of its texts: at least `least`. */
export function axisWidth(texts: readonly string[], widthOf: (text: string) => number, least: number): number {
  return Math.ceil(Math.max(least, ...texts.map(widthOf)));
}

/** A tick of the horizontal axis; `step` is the distance to the next one. */
export function formatXTick(x: XAxis, tick: number, step: number): string {
  return x === "epoch" ? tick.toFixed(decimalsOf(step)) : formatPosition(x, tick);
}

/** A tick of a metric's axis, with as many decimals as tell it from its neighbours. */
export function formatTick(name: string, tick: number, step: number, log: boolean): string {
  if (name.endsWith("_bytes")) return formatMetric(name, tick);
  const unit = isAccuracy(name) || name.endsWith("_percent") ? " %" : "";
  const scale = isAccuracy(name) ? 100 : 1;
  if (log) return unbroken(`${Number((tick * scale).toPrecision(3))}${unit}`);
  if (Math.abs(tick) >= 1e5 || (step > 0 && step < 1e-5)) return formatMetric(name, tick);
  return unbroken(`${(tick * scale).toFixed(decimalsOf(step * scale)).replace("-", "−")}${unit}`);
}

/**
 * What the axis of an accuracy shows for values from `least` to `most`: a tenth of their distance more on both sides,
 * but none above one or below zero as long as no value is (a hook may report percent). Without values both are null.
 */
export function accuracyRange(least: number | null, most: number | null): [number, number] {
  if (least === null || most === null) return [0, 1];
  const margin = (most - least) / 10 || 0.05;
  return [least < 0 ? least - margin : Math.max(0, least - margin), most > 1 ? most + margin : Math.min(1, most + margin)];
}

/** The decimals that multiples of `step` have. */
function decimalsOf(step: number): number {
  return [0, 1, 2, 3, 4, 5, 6].find((d) => Math.abs(Math.round(step * 10 ** d) - step * 10 ** d) < 1e-6) ?? 6;
}

function sameNumbers(a: readonly number[], b: readonly number[]): boolean {
  return a === b || (a.length === b.length && a.every((x, i) => x === b[i]));
}
