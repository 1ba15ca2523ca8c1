/** One metric over steps or time, drawn by uPlot straight from the feed: React builds the frame, frames of points don't pass through it. */
import { memo, useEffect, useRef, useState } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { type Curves, drawn, isSystem, type Line, notches, onMachines } from "../curves";
import type { JobFeed } from "../job-feed";
import { metric } from "../number";
import { smooth } from "../smooth";
import { token, useIsDark } from "../theme";
import { duration } from "../time";

export interface View {
  x: "step" | "time";
  log: boolean;
  /** Weight of the moving average, 0…0.99. */
  smoothing: number;
}

const HEIGHT = 190;
const PALETTE = ["series-1", "series-2", "series-3", "series-4", "series-5", "series-6"];
const AT_ONCE_ROWS = 200;

interface Trace extends Line {
  label: string;
  kind: "raw" | "main" | "lost";
  color: string;
}

export const Chart = memo(function Chart({ feed, name, view, start, slots }: {
  feed: JobFeed;
  name: string;
  view: View;
  /** Unix seconds that time is counted from. */
  start: number;
  slots: ReadonlyMap<string, string>;
}) {
  const box = useRef<HTMLDivElement>(null);
  const readout = useRef<HTMLSpanElement>(null);
  const figure = useRef<HTMLElement>(null);
  const dark = useIsDark();
  const system = isSystem(name);
  const overTime = view.x === "time" || system;

  useEffect(() => {
    const host = box.current!;
    const colors = { text: token("dim"), grid: token("line"), lost: token("series-lost"), notch: token("notch") };
    let plot: uPlot | null = null;
    let shape = "";
    let shown: Curves | null = null;

    function draw() {
      const parts = feed.curves.parts.get(name);
      if (shown && shown.parts.get(name) === parts && shown.generations === feed.curves.generations) return;
      shown = feed.curves;
      const traces = tracesOf(feed.curves, name, view, slots);
      const next = traces.map(({ kind, label }) => kind + label).join();
      const data = aligned(traces, overTime ? (trace) => trace.times.map((time) => time - start) : (trace) => trace.steps, view.log);
      if (plot && next === shape) plot.setData(data);
      else {
        plot?.destroy();
        shape = next;
        plot = new uPlot(options(traces), data, host);
      }
      say(null);
    }

    function options(traces: Trace[]): uPlot.Options {
      const axis = { stroke: colors.text, grid: { stroke: colors.grid, width: 1 }, ticks: { stroke: colors.grid, width: 1, size: 4 }, font: "11px system-ui, sans-serif" };
      return {
        width: Math.max(200, host.clientWidth),
        height: HEIGHT,
        legend: { show: false },
        cursor: { sync: { key: system ? "system" : "training", scales: ["x", null] }, points: { size: 6 }, drag: { x: true, y: false } },
        scales: { x: { time: false }, y: view.log ? { distr: 3 } : {} },
        axes: [
          { ...axis, size: 26, gap: 3, values: (_, ticks) => ticks.map((tick) => (overTime ? duration(tick).replace(".0 s", " s") : tick.toLocaleString("en"))), space: 70 },
          { ...axis, size: 56, gap: 4, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : metric(name, tick).replace(/\.?0+ %$/, " %"))), space: 34 },
        ],
        series: [
          {},
          ...traces.map(({ kind, color }): uPlot.Series => ({
            stroke: kind === "main" ? color : kind === "lost" ? colors.lost : faint(color),
            width: kind === "main" ? 1.75 : 1.25,
            ...(kind === "lost" ? { dash: [4, 3] } : {}),
            points: kind === "main" ? { size: 4 } : { show: false },
          })),
        ],
        hooks: {
          drawAxes: [(u) => !overTime && drawNotches(u, feed.curves, colors.notch)],
          draw: [() => tellLastStep()],
          setCursor: [(u) => say(u.cursor.idx ?? null, u)],
        },
      };
    }

    /** Set when it is on the canvas, not when it has arrived. */
    function tellLastStep() {
      const { kept } = drawn(feed.curves, name);
      const last = kept.steps.at(-1);
      if (!system && last !== undefined) figure.current!.dataset.lastStep = String(last);
    }

    function say(index: number | null, u: uPlot | null = plot) {
      if (!u || !readout.current) return;
      const traces = tracesOf(feed.curves, name, view, slots).filter(({ kind }) => kind === "main");
      const offset = u.data.length - 1 - traces.length - lostCount(feed.curves, name, system);
      const at = index === null ? null : u.data[0]![index];
      const values = traces.map((trace, i) => {
        const here = index === null ? trace.values.at(-1) : nearest(u.data[1 + offset + i] as (number | null | undefined)[], index);
        return `${traces.length > 1 ? `${trace.label} ` : ""}${metric(name, here)}`;
      });
      const place = at === null || at === undefined ? "" : overTime ? `${duration(at)}: ` : `step ${at.toLocaleString("en")}: `;
      readout.current.textContent = place + values.join("  ");
    }

    draw();
    const stop = feed.subscribe(draw);
    const resized = new ResizeObserver(() => plot?.setSize({ width: Math.max(200, host.clientWidth), height: HEIGHT }));
    resized.observe(host);
    return () => {
      stop();
      resized.disconnect();
      plot?.destroy();
    };
  }, [feed, name, view, start, slots, dark, system, overTime]);

  return (
    <figure ref={figure} className="chart" data-metric={name}>
      <figcaption>
        <h3>{name}</h3>
        <span ref={readout} className="readout" />
      </figcaption>
      <div ref={box} className="canvas" role="img" aria-label={`${name} over ${overTime ? "time" : "steps"}; its numbers are in the table below`} />
      <Numbers feed={feed} name={name} slots={slots} />
    </figure>
  );
});

/** What the canvas shows, as a table for those who can't see it and a file for those who want it. */
function Numbers({ feed, name, slots }: { feed: JobFeed; name: string; slots: ReadonlyMap<string, string> }) {
  const [open, setOpen] = useState(false);
  return (
    <details className="numbers" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Numbers</summary>
      {open && <NumbersTable feed={feed} name={name} slots={slots} />}
    </details>
  );
}

function NumbersTable({ feed, name, slots }: { feed: JobFeed; name: string; slots: ReadonlyMap<string, string> }) {
  const rows = rowsOf(feed.curves, name, slots);
  const shown = rows.slice(-AT_ONCE_ROWS);
  const csv = ["step,unix_s,value,series", ...rows.map(({ step, time, value, series }) => `${step},${time},${value},${series}`)].join("\n");
  return (
    <>
      <p className="row">
        <span className="dim">{rows.length > shown.length ? `The last ${shown.length} of ${rows.length.toLocaleString("en")}` : `${rows.length} values`}</span>
        <a className="button small quiet" download={`${name.replaceAll("/", "-")}.csv`} href={`data:text/csv;charset=utf-8,${encodeURIComponent(csv)}`}>
          CSV
        </a>
      </p>
      <div className="table-box short" tabIndex={0} role="region" aria-label={`Values of ${name}`}>
        <table>
          <thead>
            <tr>
              <th className="num">Step</th>
              <th className="num">Value</th>
              <th>Series</th>
            </tr>
          </thead>
          <tbody>
            {shown.map((row, i) => (
              <tr key={i}>
                <td className="num">{row.step}</td>
                <td className="num">{metric(name, row.value)}</td>
                <td className="dim">{row.series}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}

function rowsOf(curves: Curves, name: string, slots: ReadonlyMap<string, string>) {
  const lines: [string, Line][] = isSystem(name)
    ? onMachines(curves, name).map(({ machine, line }) => [slots.get(machine ?? "") ?? "machine", line])
    : (({ kept, lost }) => [["merged", kept] as [string, Line], ...lost.map((line): [string, Line] => ["lost work", line])])(drawn(curves, name));
  return lines.flatMap(([series, line]) => line.steps.map((step, i) => ({ step, time: line.times[i]!, value: line.values[i]!, series })));
}

function tracesOf(curves: Curves, name: string, view: View, slots: ReadonlyMap<string, string>): Trace[] {
  if (isSystem(name)) {
    return onMachines(curves, name).map(({ machine, line }, i) => ({
      ...line,
      label: slots.get(machine ?? "") ?? "machine",
      kind: "main",
      color: token(PALETTE[i % PALETTE.length]!),
    }));
  }
  const { kept, lost } = drawn(curves, name);
  const color = token(name.startsWith("val/") ? PALETTE[1]! : PALETTE[0]!);
  const smoothed = { ...kept, values: smooth(kept.steps, kept.values, view.smoothing) };
  return [
    ...(view.smoothing > 0 ? [{ ...kept, label: "raw", kind: "raw" as const, color }] : []),
    { ...smoothed, label: "merged", kind: "main" as const, color },
    ...lost.map((line, i) => ({ ...line, label: `lost ${i + 1}`, kind: "lost" as const, color })),
  ];
}

function lostCount(curves: Curves, name: string, system: boolean): number {
  return system ? 0 : drawn(curves, name).lost.length;
}

/**
 * uPlot's table: one rising x, and a column for each trace. `undefined` where a trace has no point (drawn across),
 * `null` where its value can't be drawn (a gap): NaN, infinities, and what isn't positive on a log axis.
 */
export function aligned(traces: readonly Line[], xOf: (line: Line) => number[], log: boolean): uPlot.AlignedData {
  const columns = traces.map((trace) => ({ xs: xOf(trace), ys: trace.values }));
  const drawable = (y: number) => (Number.isFinite(y) && (!log || y > 0) ? y : null);
  const only = columns[0];
  if (columns.length === 1 && only) return [only.xs, only.ys.map(drawable)];
  const xs = [...new Set(columns.flatMap((column) => column.xs))].sort((a, b) => a - b);
  const place = new Map(xs.map((x, i) => [x, i]));
  const ys = columns.map((column) => {
    const out: (number | null | undefined)[] = Array.from({ length: xs.length });
    column.xs.forEach((x, i) => {
      out[place.get(x)!] = drawable(column.ys[i]!);
    });
    return out;
  });
  return [xs, ...ys] as uPlot.AlignedData;
}

/** The value at an index, or the last one before it. */
function nearest(column: (number | null | undefined)[], index: number): number | null {
  for (let i = index; i >= 0; i--) if (column[i] !== undefined) return column[i]!;
  return null;
}

/** Where an attempt or a generation began again: a hairline, and a notch under the axis. */
function drawNotches(u: uPlot, curves: Curves, color: string): void {
  const { ctx } = u;
  const { left, top, width, height } = u.bbox;
  const pixel = window.devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = color;
  ctx.lineWidth = pixel;
  ctx.font = `${10 * pixel}px system-ui, sans-serif`;
  for (const notch of notches(curves)) {
    const x = Math.round(u.valToPos(notch.step, "x", true));
    if (x < left || x > left + width) continue;
    ctx.setLineDash(notch.newAttempt ? [] : [2 * pixel, 3 * pixel]);
    ctx.beginPath();
    ctx.moveTo(x, top);
    ctx.lineTo(x, top + height);
    ctx.stroke();
    ctx.beginPath();
    ctx.moveTo(x, top + height);
    ctx.lineTo(x - 4 * pixel, top + height + 6 * pixel);
    ctx.lineTo(x + 4 * pixel, top + height + 6 * pixel);
    ctx.fill();
    if (notch.newAttempt && notch.attempt !== null) ctx.fillText(`attempt ${notch.attempt}`, x + 4 * pixel, top + 10 * pixel);
  }
  ctx.restore();
}

function faint(color: string): string {
  return color.replace(/^rgb\((.*)\)$/, "rgba($1, 0.28)");
}
