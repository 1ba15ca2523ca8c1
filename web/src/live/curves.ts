/**
 * A job's curves as columns that only grow. `merge` takes in what the service read or streamed, in any order and any
 * number of times; `drawn` says which points are the merged curve and which are lost work.
 *
 * A generation owns the steps after its start up to where a later one began again (the server's rule, told by its
 * `generations`); a generation not told of yet began just before its first point. `system/…` series are sampled by
 * time on each machine and belong to no generation.
 */
import type { components } from "../api/schema";

export type Curve = components["schemas"]["Curve"];
export type Generation = Pick<components["schemas"]["Generation"], "no" | "attempt" | "start_step">;

/** What `GET /metrics` and a `points` message have in common. */
export interface Reading {
  curves: readonly Curve[];
  /** Of curves that don't name their own. */
  generation?: number;
  generations?: readonly Generation[];
}

export interface Part {
  readonly generation: number;
  readonly machine: string | null;
  readonly column: Column;
}

export interface Curves {
  readonly parts: ReadonlyMap<string, ReadonlyMap<string, Part>>;
  readonly generations: ReadonlyMap<number, { readonly start: number; readonly attempt: number | null }>;
}

export interface Line {
  steps: number[];
  times: number[];
  values: number[];
}

export const EMPTY: Curves = { parts: new Map(), generations: new Map() };

export function isSystem(name: string): boolean {
  return name.startsWith("system/");
}

/** The curves with a reading taken in. The old ones stay as they were. */
export function merge(curves: Curves, reading: Reading): Curves {
  const parts = new Map(curves.parts);
  const generations = new Map(curves.generations);
  for (const curve of reading.curves) {
    const generation = curve.generation ?? reading.generation ?? 0;
    const key = isSystem(curve.name) ? (curve.machine ?? "") : String(generation);
    const named = new Map(parts.get(curve.name));
    const known = named.get(key)?.column ?? NO_POINTS;
    named.set(key, { generation, machine: curve.machine, column: extended(known, curve, isSystem(curve.name)) });
    parts.set(curve.name, named);
    if (isSystem(curve.name) || curve.steps.length === 0) continue;
    const first = curve.steps.reduce((least, step) => Math.min(least, step));
    const told = generations.get(generation);
    if (!told || (told.attempt === null && first - 1 < told.start)) {
      generations.set(generation, { start: Math.max(0, first - 1), attempt: null });
    }
  }
  for (const one of reading.generations ?? []) generations.set(one.no, { start: one.start_step, attempt: one.attempt });
  return { parts, generations };
}

/** The names that have points: training, then validation, then the rest, `system/` last. */
export function names(curves: Curves): string[] {
  const rank = (name: string) => (name.startsWith("val/") ? 0 : name.startsWith("train/") ? 1 : isSystem(name) ? 3 : 2);
  return [...curves.parts.keys()].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

/** The merged curve of a metric, and the lost work of each generation, which begins where it leaves the merged one. */
export function drawn(curves: Curves, name: string): { kept: Line; lost: Line[] } {
  const kept = line();
  const lost: Line[] = [];
  const ends = ownedThrough(curves);
  const ordered = [...(curves.parts.get(name)?.values() ?? [])].sort((a, b) => a.generation - b.generation);
  for (const { generation, column } of ordered) {
    const start = curves.generations.get(generation)?.start ?? 0;
    const cut = column.countThrough(ends.get(generation) ?? Infinity);
    const from = Math.min(column.countThrough(start), cut);
    push(kept, column, from, cut);
    if (cut < column.length) {
      const fork = line();
      push(fork, column, Math.max(0, cut - 1), column.length);
      lost.push(fork);
    }
  }
  return { kept, lost };
}

/** A system metric's line on each machine. */
export function onMachines(curves: Curves, name: string): { machine: string | null; line: Line }[] {
  return [...(curves.parts.get(name)?.values() ?? [])].map(({ machine, column }) => {
    const whole = line();
    push(whole, column, 0, column.length);
    return { machine, line: whole };
  });
}

export interface Notch {
  generation: number;
  attempt: number | null;
  step: number;
  /** Unix seconds of its first point; null before that. */
  time: number | null;
  newAttempt: boolean;
}

/** Where training began again. */
export function notches(curves: Curves): Notch[] {
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

/** The last step of a generation that is on the merged curve. */
function ownedThrough(curves: Curves): Map<number, number> {
  const ends = new Map<number, number>();
  let end = Infinity;
  for (const [no, { start }] of [...curves.generations].sort(([a], [b]) => b - a)) {
    ends.set(no, end);
    end = Math.min(end, start);
  }
  return ends;
}

function line(): Line {
  return { steps: [], times: [], values: [] };
}

function push(line: Line, column: Column, from: number, to: number): void {
  for (let i = from; i < to; i++) {
    line.steps.push(column.steps[i]!);
    line.times.push(column.times[i]!);
    line.values.push(column.values[i]!);
  }
}

/**
 * Points in the order of their steps. A longer column may share the arrays of a shorter one, which doesn't look past
 * its own length; only the one that reaches the end of what is written may write on.
 */
export class Column {
  constructor(
    private readonly room: Room,
    readonly length: number,
  ) {}

  get steps(): Float64Array {
    return this.room.steps;
  }
  get times(): Float64Array {
    return this.room.times;
  }
  get values(): Float64Array {
    return this.room.values;
  }

  /** How many points have a step ≤ `step`. */
  countThrough(step: number): number {
    let [low, high] = [0, this.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.steps[middle]! <= step) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** With points whose steps rise and lie past the last one of this column. */
  append(steps: ArrayLike<number>, times: ArrayLike<number>, values: ArrayLike<number>): Column {
    const length = this.length + steps.length;
    const fits = this.room.written === this.length && length <= this.room.steps.length;
    const room = fits ? this.room : new Room(Math.max(256, length * 2), this);
    room.steps.set(steps, this.length);
    room.times.set(times, this.length);
    room.values.set(values, this.length);
    room.written = length;
    return new Column(room, length);
  }
}

class Room {
  readonly steps: Float64Array;
  readonly times: Float64Array;
  readonly values: Float64Array;
  written = 0;

  constructor(size: number, copied?: Column) {
    this.steps = new Float64Array(size);
    this.times = new Float64Array(size);
    this.values = new Float64Array(size);
    if (!copied) return;
    this.steps.set(copied.steps.subarray(0, copied.length));
    this.times.set(copied.times.subarray(0, copied.length));
    this.values.set(copied.values.subarray(0, copied.length));
  }
}

const NO_POINTS = new Column(new Room(0), 0);

/** The column with a curve's points; of two for one step the newer report stands. */
function extended(column: Column, curve: Curve, byTime: boolean): Column {
  const values = Float64Array.from(curve.values as (number | string)[], Number); // NaN and infinities come as text
  const last = column.length ? column.steps[column.length - 1]! : -Infinity;
  const keys = byTime ? curve.times : curve.steps;
  if (keys.length === 0) return column;
  if (keys[0]! > last && rises(keys)) return column.append(keys, curve.times, values);
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

function rises(xs: readonly number[]): boolean {
  return xs.every((x, i) => i === 0 || xs[i - 1]! < x);
}
