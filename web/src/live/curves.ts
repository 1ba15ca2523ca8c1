/**
 * A job's curves as append-only columns. `mergeUpdate` adds points that were read or streamed, in any order and any
 * number of times; `splitCurve` separates the merged curve from the rolled-back steps.
 *
 * A generation owns the steps after its start up to the start of a later generation (the server's rule; it sends the
 * `generations`). The start of a generation that is not known yet is taken from its first point. `system/…` series are
 * sampled by time on each machine and belong to no generation.
 */
import type { components } from "../api/schema";

export type Curve = components["schemas"]["Curve"];
export type Generation = Pick<components["schemas"]["Generation"], "number" | "attempt" | "start_step">;

/** The common fields of `GET /metrics` and a `points` message. */
export interface CurveUpdate {
  curves: readonly Curve[];
  /** Generation of the curves that don't name their own. */
  generation?: number;
  generations?: readonly Generation[];
}

export interface SeriesPart {
  readonly generation: number;
  readonly machine: string | null;
  readonly column: Column;
}

export interface Curves {
  readonly parts: ReadonlyMap<string, ReadonlyMap<string, SeriesPart>>;
  readonly generations: ReadonlyMap<number, { readonly start: number; readonly attempt: number | null }>;
}

export interface Line {
  steps: number[];
  times: number[];
  values: number[];
}

export const NO_CURVES: Curves = { parts: new Map(), generations: new Map() };

export function isSystem(name: string): boolean {
  return name.startsWith("system/");
}

/** Return the curves with an update added. The argument is not changed. */
export function mergeUpdate(curves: Curves, update: CurveUpdate): Curves {
  const parts = new Map(curves.parts);
  const generations = new Map(curves.generations);
  for (const curve of update.curves) {
    const generation = curve.generation ?? update.generation ?? 0;
    const key = isSystem(curve.name) ? (curve.machine ?? "") : String(generation);
    const seriesParts = new Map(parts.get(curve.name));
    const column = seriesParts.get(key)?.column ?? NO_POINTS;
    seriesParts.set(key, { generation, machine: curve.machine, column: extendColumn(column, curve, isSystem(curve.name)) });
    parts.set(curve.name, seriesParts);
    if (isSystem(curve.name) || curve.steps.length === 0) continue;
    const first = curve.steps.reduce((least, step) => Math.min(least, step));
    const known = generations.get(generation);
    if (!known || (known.attempt === null && first - 1 < known.start)) {
      generations.set(generation, { start: Math.max(0, first - 1), attempt: null });
    }
  }
  for (const { number, start_step, attempt } of update.generations ?? []) generations.set(number, { start: start_step, attempt });
  return { parts, generations };
}

const MIN_CONSTANT_POINTS = 10;

/** Return whether a metric has had a single value for long enough that its curve says nothing. */
export function isConstant(curves: Curves, name: string): boolean {
  let [points, only] = [0, Number.NaN];
  for (const { column } of curves.parts.get(name)?.values() ?? []) {
    for (let i = 0; i < column.length; i++) {
      if (points++ === 0) only = column.values[i]!;
      else if (column.values[i] !== only) return false;
    }
  }
  return points >= MIN_CONSTANT_POINTS;
}

/** Return the names of the metrics: validation first, then training, then the others, `system/` last. */
export function metricNames(curves: Curves): string[] {
  const rank = (name: string) => (name.startsWith("val/") ? 0 : name.startsWith("train/") ? 1 : isSystem(name) ? 3 : 2);
  return [...curves.parts.keys()].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

/** Return the merged curve of a metric, and for each generation its rolled-back steps, which start on the merged curve. */
export function splitCurve(curves: Curves, name: string): { merged: Line; rolledBack: Line[] } {
  const merged = emptyLine();
  const rolledBack: Line[] = [];
  const ends = lastOwnedSteps(curves);
  const ordered = [...(curves.parts.get(name)?.values() ?? [])].sort((a, b) => a.generation - b.generation);
  for (const { generation, column } of ordered) {
    const start = curves.generations.get(generation)?.start ?? 0;
    const cut = column.countThrough(ends.get(generation) ?? Infinity);
    const from = Math.min(column.countThrough(start), cut);
    copyPoints(merged, column, from, cut);
    if (cut < column.length) {
      const branch = emptyLine();
      copyPoints(branch, column, Math.max(0, cut - 1), column.length);
      rolledBack.push(branch);
    }
  }
  return { merged, rolledBack };
}

/** Return a system metric's line for each machine. */
export function machineLines(curves: Curves, name: string): { machine: string | null; line: Line }[] {
  return [...(curves.parts.get(name)?.values() ?? [])].map(({ machine, column }) => {
    const line = emptyLine();
    copyPoints(line, column, 0, column.length);
    return { machine, line };
  });
}

export interface RestartMarker {
  generation: number;
  attempt: number | null;
  step: number;
  /** Unix seconds of the generation's first point; null before it. */
  time: number | null;
  newAttempt: boolean;
}

/** Return the steps at which training restarted. */
export function restartMarkers(curves: Curves): RestartMarker[] {
  const ordered = [...curves.generations].sort(([a], [b]) => a - b);
  return ordered.slice(1).map(([generation, { start, attempt }], i) => ({
    generation,
    attempt,
    step: start,
    time: firstTime(curves, generation),
    newAttempt: attempt !== ordered[i]![1].attempt,
  }));
}

function firstTime(curves: Curves, generation: number): number | null {
  const times = [...curves.parts]
    .filter(([name]) => !isSystem(name))
    .flatMap(([, parts]) => parts.get(String(generation))?.column ?? [])
    .filter(({ length }) => length > 0)
    .map(({ times }) => times[0]!);
  return times.length > 0 ? Math.min(...times) : null;
}

/** Return the last step of each generation that is on the merged curve. */
function lastOwnedSteps(curves: Curves): Map<number, number> {
  const ends = new Map<number, number>();
  let end = Infinity;
  for (const [number, { start }] of [...curves.generations].sort(([a], [b]) => b - a)) {
    ends.set(number, end);
    end = Math.min(end, start);
  }
  return ends;
}

function emptyLine(): Line {
  return { steps: [], times: [], values: [] };
}

function copyPoints(line: Line, column: Column, from: number, to: number): void {
  for (let i = from; i < to; i++) {
    line.steps.push(column.steps[i]!);
    line.times.push(column.times[i]!);
    line.values.push(column.values[i]!);
  }
}

/**
 * Points ordered by step. A longer column may share the buffer of a shorter one, which doesn't read past its own length;
 * only a column that ends where the buffer's written part ends may append in place.
 */
export class Column {
  constructor(
    private readonly buffer: ColumnBuffer,
    readonly length: number,
  ) {}

  get steps(): Float64Array {
    return this.buffer.steps;
  }
  get times(): Float64Array {
    return this.buffer.times;
  }
  get values(): Float64Array {
    return this.buffer.values;
  }

  /** Return how many points have a step ≤ `step`. */
  countThrough(step: number): number {
    let [low, high] = [0, this.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.steps[middle]! <= step) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Return the column with points added, whose steps must increase and be greater than its last step. */
  append(steps: ArrayLike<number>, times: ArrayLike<number>, values: ArrayLike<number>): Column {
    const length = this.length + steps.length;
    const fits = this.buffer.written === this.length && length <= this.buffer.steps.length;
    const buffer = fits ? this.buffer : new ColumnBuffer(Math.max(256, length * 2), this);
    buffer.steps.set(steps, this.length);
    buffer.times.set(times, this.length);
    buffer.values.set(values, this.length);
    buffer.written = length;
    return new Column(buffer, length);
  }
}

class ColumnBuffer {
  readonly steps: Float64Array;
  readonly times: Float64Array;
  readonly values: Float64Array;
  written = 0;

  constructor(capacity: number, source?: Column) {
    this.steps = new Float64Array(capacity);
    this.times = new Float64Array(capacity);
    this.values = new Float64Array(capacity);
    if (!source) return;
    this.steps.set(source.steps.subarray(0, source.length));
    this.times.set(source.times.subarray(0, source.length));
    this.values.set(source.values.subarray(0, source.length));
  }
}

const NO_POINTS = new Column(new ColumnBuffer(0), 0);

/** Return the column with a curve's points; of two values for one step the later one is kept. */
function extendColumn(column: Column, curve: Curve, byTime: boolean): Column {
  const values = Float64Array.from(curve.values as (number | string)[], Number); // NaN and infinities are strings in JSON
  const last = column.length ? column.steps[column.length - 1]! : -Infinity;
  const keys = byTime ? curve.times : curve.steps;
  if (keys.length === 0) return column;
  if (keys[0]! > last && isIncreasing(keys)) return column.append(keys, curve.times, values);
  const points = new Map<number, [number, number]>();
  for (let i = 0; i < column.length; i++) points.set(column.steps[i]!, [column.times[i]!, column.values[i]!]);
  for (let i = 0; i < keys.length; i++) points.set(keys[i]!, [curve.times[i]!, values[i]!]);
  const ordered = [...points].sort(([a], [b]) => a - b);
  return NO_POINTS.append(
    ordered.map(([key]) => key),
    ordered.map(([, [time]]) => time),
    ordered.map(([, [, value]]) => value),
  );
}

function isIncreasing(xs: readonly number[]): boolean {
  return xs.every((x, i) => i === 0 || xs[i - 1]! < x);
}
