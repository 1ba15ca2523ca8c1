/** One metric on a canvas, drawn by uPlot straight from the feed: frames of points don't pass through React. */
import uPlot from "uplot";
import { type Curves, drawn, isSystem, type Line, notches, onMachines } from "../../live/curves";
import type { JobFeed } from "../../live/job-feed";
import { metric } from "../../lib/number";
import { smooth } from "../../lib/smooth";
import { token } from "../../lib/theme";
import { aligned, type Column, type Place, placer, placeText, tickText, type XAxis } from "./axes";

export interface View {
  x: XAxis;
  log: boolean;
  /** Weight of the moving average, 0…0.99. */
  smoothing: number;
  /** Unix seconds that time is counted from. */
  start: number;
  /** Short names of machines; the order gives each its colour. */
  slots: ReadonlyMap<string, string>;
}

const HEIGHT_PX = 190;
const NARROWEST_PX = 200;
const LABEL_PX = 10;
/** Seconds between ticks, as clocks count. */
const TIME_STEPS = [0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400, 172_800, 604_800];
const FONT = "11px system-ui, sans-serif";

interface Trace extends Line {
  label: string;
  kind: "main" | "raw" | "lost";
  color: string;
}

/**
 * Draw a metric into `host` and keep it drawn, until the returned function is called. `readout` tells the newest value,
 * or those under the cursor. `figure` gets `data-last-step` once the step is on the canvas.
 */
export function plotMetric(feed: JobFeed, name: string, view: View, host: HTMLElement, readout: HTMLElement, figure: HTMLElement): () => void {
  const system = isSystem(name);
  const x: XAxis = system ? "time" : view.x;
  const log = view.log && !system;
  const colors = {
    series: [1, 2, 3, 4, 5, 6].map((n) => token(`series-${n}`)),
    axis: token("dim"),
    grid: token("line"),
    lost: token("series-lost"),
    notch: token("notch"),
  };
  let plot: uPlot | null = null;
  let traces: Trace[] = [];
  let shown: Curves | null = null;
  let zoomed = false;

  function update() {
    const { curves } = feed;
    if (shown?.parts.get(name) === curves.parts.get(name) && shown?.generations === curves.generations) return;
    shown = curves;
    const before = shape(traces);
    traces = system ? machineTraces(curves, name, view, colors.series) : trainingTraces(curves, name, view, colors);
    const data = aligned(traces, placer(curves, x, view.start), log);
    if (plot && shape(traces) === before) {
      plot.setData(data, !zoomed);
      if (zoomed) plot.redraw();
    } else {
      plot?.destroy();
      plot = new uPlot(options(), data, host);
    }
    tell(plot.cursor.idx ?? null);
  }

  function options(): uPlot.Options {
    const axis = { stroke: colors.axis, grid: { stroke: colors.grid, width: 1 }, ticks: { stroke: colors.grid, width: 1, size: 4 }, font: FONT };
    return {
      width: Math.max(NARROWEST_PX, host.clientWidth),
      height: HEIGHT_PX,
      legend: { show: false },
      cursor: { sync: { key: system ? "system" : "training", scales: ["x", null] }, points: { size: 6 }, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: yScale(name, log) },
      padding: [LABEL_PX + 4, 18, 0, 0],
      axes: [
        { ...axis, size: 26, gap: 3, space: 70, ...(x === "time" ? { incrs: TIME_STEPS } : {}), values: (_, ticks) => ticks.map((tick) => placeText(x, tick)) },
        { ...axis, size: 54, gap: 4, space: 34, values: (_, ticks, __, ___, step) => ticks.map((tick) => tickText(name, tick, step, log)) },
      ],
      series: [
        {},
        ...traces.map(
          ({ kind, color }): uPlot.Series => ({
            stroke: kind === "main" ? color : kind === "lost" ? colors.lost : faint(color),
            width: kind === "main" ? 1.75 : 1.25,
            ...(kind === "lost" ? { dash: [4, 3] } : {}),
            points: kind === "main" ? { size: 4 } : { show: false },
          }),
        ),
      ],
      hooks: {
        drawAxes: [(u) => !system && drawNotches(u, feed.curves, placer(feed.curves, x, view.start), colors.notch)],
        draw: [markLastStep],
        setCursor: [(u) => tell(u.cursor.idx ?? null)],
        setScale: [
          (u, scale) => {
            if (scale !== "x") return;
            const [first, last] = [u.data[0][0], u.data[0].at(-1)];
            zoomed = first !== undefined && last !== undefined && (u.scales.x!.min! > first || u.scales.x!.max! < last);
          },
        ],
      },
    };
  }

  function markLastStep() {
    const last = system ? undefined : traces.find(({ kind }) => kind === "main")?.steps.at(-1);
    if (last !== undefined) figure.dataset.lastStep = String(last);
  }

  function tell(index: number | null) {
    const main = traces.filter(({ kind }) => kind === "main");
    const texts = main.map((trace) => {
      const column = plot?.data[1 + traces.indexOf(trace)] as Column | undefined;
      const here = index === null || !column ? trace.values.at(-1) : valueAt(column, index);
      return main.length > 1 ? `${trace.label} ${metric(name, here)}` : metric(name, here);
    });
    const at = index === null ? undefined : plot?.data[0][index];
    readout.textContent = (at === undefined ? "" : `${x === "time" ? "" : `${x} `}${placeText(x, at)}: `) + texts.join("  ");
  }

  update();
  const stop = feed.subscribe(update);
  const resized = new ResizeObserver(() => plot?.setSize({ width: Math.max(NARROWEST_PX, host.clientWidth), height: HEIGHT_PX }));
  resized.observe(host);
  return () => {
    stop();
    resized.disconnect();
    plot?.destroy();
  };
}

/** Loads are shares of what there is: their axes begin at nothing. */
function yScale(name: string, log: boolean): uPlot.Scale {
  if (log) return { distr: 3 };
  if (name.endsWith("_percent")) return { range: [0, 100] };
  if (isSystem(name)) return { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] };
  return {};
}

function trainingTraces(curves: Curves, name: string, view: View, colors: { series: string[] }): Trace[] {
  const { kept, lost } = drawn(curves, name);
  const color = colors.series[name.startsWith("val/") ? 1 : 0]!;
  const main: Trace = { ...kept, label: "merged", kind: "main", color };
  const forks = lost.map((line, i): Trace => ({ ...line, label: `lost ${i}`, kind: "lost", color }));
  if (view.smoothing === 0) return [main, ...forks];
  const smoothed = { ...main, values: smooth(kept.steps, kept.values, view.smoothing) };
  return [smoothed, { ...main, label: "raw", kind: "raw" }, ...forks];
}

function machineTraces(curves: Curves, name: string, view: View, palette: string[]): Trace[] {
  const places = [...view.slots.values()];
  return onMachines(curves, name).map(({ machine, line }): Trace => {
    const label = view.slots.get(machine ?? "") ?? "machine";
    return { ...line, label, kind: "main", color: palette[Math.max(0, places.indexOf(label)) % palette.length]! };
  });
}

function shape(traces: readonly Trace[]): string {
  return traces.map(({ kind, label }) => `${kind} ${label}`).join();
}

/** The value at a row, or the last one before it. */
function valueAt(column: Column, row: number): number | null {
  for (let i = row; i >= 0; i--) if (column[i] !== undefined) return column[i]!;
  return null;
}

/** Where an attempt or a generation began again: a hairline, and a notch under the axis. */
function drawNotches(u: uPlot, curves: Curves, place: Place, color: string): void {
  const { ctx, bbox } = u;
  const pixel = window.devicePixelRatio;
  const bottom = bbox.top + bbox.height;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = color;
  ctx.lineWidth = pixel;
  ctx.font = `${LABEL_PX * pixel}px system-ui, sans-serif`;
  ctx.textAlign = "center";
  for (const notch of notches(curves)) {
    const at = place({ steps: [notch.step], times: [notch.time ?? Number.NaN], values: [] })[0]!;
    const x = Math.round(u.valToPos(at, "x", true));
    if (!(x >= bbox.left && x <= bbox.left + bbox.width)) continue;
    ctx.setLineDash(notch.newAttempt ? [] : [2 * pixel, 3 * pixel]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bottom);
    ctx.stroke();
    ctx.beginPath();
    ctx.moveTo(x, bottom);
    ctx.lineTo(x - 4 * pixel, bottom + 6 * pixel);
    ctx.lineTo(x + 4 * pixel, bottom + 6 * pixel);
    ctx.fill();
    if (notch.newAttempt && notch.attempt !== null) {
      const label = `attempt ${notch.attempt}`;
      const half = ctx.measureText(label).width / 2;
      ctx.fillText(label, Math.min(x, bbox.left + bbox.width - half), bbox.top - 4 * pixel);
    }
  }
  ctx.restore();
}

function faint(color: string): string {
  return color.replace(/^rgb\((.*)\)$/, "rgba($1, 0.28)");
}
