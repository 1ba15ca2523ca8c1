/** The plot of one metric, drawn by uPlot directly from the feed, without React renders for each frame of points. */
import uPlot from "uplot";
import { type Curves, splitCurve, isSystem, type Line, restartMarkers, machineLines } from "../../live/curves";
import type { JobFeed } from "../../live/job-feed";
import { formatMetric, isAccuracy } from "../../lib/number";
import { smooth } from "../../lib/smooth";
import { cssColor } from "../../lib/theme";
import { accuracyRange, alignLines, axisWidth, type Column, formatPosition, formatTick, formatXTick, makePositionOf, type PositionOf, TICK_DISTANCES, tickTexts, type XAxis } from "./plot-axes";

export interface View {
  x: XAxis;
  log: boolean;
  /** Weight of the moving average, 0…0.99. */
  smoothing: number;
  /** Unix seconds at which the time axis starts. */
  start: number;
  /** Machine labels by id; their order determines the colours. */
  machineLabels: ReadonlyMap<string, string>;
}

const HEIGHT_PX = 190;
const NARROWEST_PX = 200;
const LABEL_PX = 10;
const [TICK_PX, GAP_PX] = [4, 4];
/** Beside the plot: half of the last tick's text, such as "1h 02m". */
const RIGHT_PX = 26;
const FONT = "11px system-ui, sans-serif";

interface Trace extends Line {
  label: string;
  kind: "main" | "raw" | "rolled-back";
  color: string;
}

export interface Places {
  /** What is drawn in. */
  host: HTMLElement;
  /** Shows the latest value, or the values under the cursor. */
  readout: HTMLElement;
  /** Gets `data-last-step` once that step is drawn. */
  figure: HTMLElement;
  /** The part that the reader has zoomed to. It outlives the plot, which is made anew for other lines or colours. */
  zoom: { current: Zoom | null };
}

export interface Zoom {
  x: XAxis;
  min: number;
  max: number;
}

/** Draw a metric and update it until the returned function is called. `onZoom` is told whether a part of it is shown. */
export function plotMetric(feed: JobFeed, name: string, view: View, { host, readout, figure, zoom }: Places, onZoom: (zoomed: boolean) => void): () => void {
  const system = isSystem(name);
  const x: XAxis = system ? "time" : view.x;
  const log = view.log && !system;
  const colors = {
    series: [1, 2, 3, 4, 5, 6].map((n) => cssColor(`series-${n}`)),
    axis: cssColor("muted"),
    grid: cssColor("line"),
    rolledBack: cssColor("series-rolled-back"),
    restart: cssColor("restart"),
  };
  let plot: uPlot | null = null;
  let traces: Trace[] = [];
  let shown: Curves | null = null;
  let zoomed = false;

  function update() {
    const { curves } = feed;
    if (shown?.parts.get(name) === curves.parts.get(name) && shown?.generations === curves.generations) return;
    shown = curves;
    const before = traceKey(traces);
    traces = system ? machineTraces(curves, name, view, colors.series) : trainingTraces(curves, name, view, colors);
    const data = alignLines(traces, makePositionOf(curves, x, view.start), log);
    if (plot && traceKey(traces) === before) {
      plot.setData(data, !zoomed);
      if (zoomed) plot.redraw();
    } else {
      plot?.destroy();
      plot = new uPlot(options(), data, host);
      if (zoom.current?.x === x) plot.setScale("x", { ...zoom.current });
    }
    showValues(plot.cursor.idx ?? null);
  }

  /** Of a tick and its text beside the vertical axis, in pixels. */
  function widthOf(self: uPlot, text: string): number {
    self.ctx.font = FONT;
    return self.ctx.measureText(text).width + TICK_PX + GAP_PX + 2;
  }

  function options(): uPlot.Options {
    const distances = TICK_DISTANCES[x];
    const axis = { stroke: colors.axis, grid: { stroke: colors.grid, width: 1 }, ticks: { stroke: colors.grid, width: 1, size: TICK_PX }, font: FONT };
    return {
      width: Math.max(NARROWEST_PX, host.clientWidth),
      height: HEIGHT_PX,
      legend: { show: false },
      cursor: { sync: { key: syncKey(name), scales: ["x", null] }, points: { size: 6 }, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: yScale(name, log) },
      padding: [LABEL_PX + 4, RIGHT_PX, 0, 0],
      axes: [
        { ...axis, size: 26, gap: 3, space: 54, ...(distances ? { incrs: distances } : {}), values: (_, ticks, __, ___, step) => tickTexts(ticks, (tick) => formatXTick(x, tick, step)) },
        { ...axis, size: (self, texts) => axisWidth(texts ?? [], (text) => widthOf(self, text), 54), gap: GAP_PX, space: 34, values: (_, ticks, __, ___, step) => tickTexts(ticks, (tick) => formatTick(name, tick, step, log)) },
      ],
      series: [
        {},
        ...traces.map(
          ({ kind, color }): uPlot.Series => ({
            stroke: kind === "main" ? color : kind === "rolled-back" ? colors.rolledBack : faint(color),
            width: kind === "main" ? 1.75 : 1.25,
            ...(kind === "rolled-back" ? { dash: [4, 3] } : {}),
            points: kind === "main" ? { size: 4 } : { show: false },
          }),
        ),
      ],
      hooks: {
        drawAxes: [(u) => !system && drawRestartMarkers(u, feed.curves, makePositionOf(feed.curves, x, view.start), colors.restart)],
        draw: [markLastStep],
        setCursor: [(u) => showValues(u.cursor.idx ?? null)],
        setScale: [
          (u, scale) => {
            if (scale !== "x") return;
            const [first, last] = [u.data[0][0], u.data[0].at(-1)];
            const { min, max } = u.scales.x!;
            zoomed = first !== undefined && last !== undefined && (min! > first || max! < last);
            zoom.current = zoomed ? { x, min: min!, max: max! } : null;
            onZoom(zoomed);
          },
        ],
      },
    };
  }

  function markLastStep() {
    const last = system ? undefined : traces.find(({ kind }) => kind === "main")?.steps.at(-1);
    if (last !== undefined) figure.dataset.lastStep = String(last);
  }

  function showValues(index: number | null) {
    const main = traces.filter(({ kind }) => kind === "main");
    const texts = main.map((trace) => {
      const column = plot?.data[1 + traces.indexOf(trace)] as Column | undefined;
      const value = index === null || !column ? trace.values.at(-1) : valueAt(column, index);
      return main.length > 1 ? `${trace.label} ${formatMetric(name, value)}` : formatMetric(name, value);
    });
    const at = index === null ? undefined : plot?.data[0][index];
    readout.textContent = (at === undefined ? "" : `${x === "time" ? "" : `${x} `}${formatPosition(x, at)}: `) + texts.join("  ");
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

/** Show the whole of a metric again, and of those that are zoomed with it. */
export function resetZoom(name: string): void {
  for (const plot of uPlot.sync(syncKey(name)).plots) plot.setData(plot.data);
}

/** Metrics with the same horizontal axis share cursor and zoom. */
function syncKey(name: string): string {
  return isSystem(name) ? "system" : "training";
}

/** Axes of system metrics start at zero. */
function yScale(name: string, log: boolean): uPlot.Scale {
  if (log) return { distr: 3, ...(isAccuracy(name) ? { range: upToOne } : {}) };
  if (name.endsWith("_percent")) return { range: [0, 100] };
  if (isSystem(name)) return { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] };
  if (isAccuracy(name)) return { range: (_, least, most) => accuracyRange(least, most) };
  return {};
}

/** The powers of ten around the values, but none above one as long as no value is. */
function upToOne(_: uPlot, least: number | null, most: number | null): uPlot.Range.MinMax {
  if (least === null || most === null) return [null, null];
  const [low, high] = uPlot.rangeLog(least, most, 10, true);
  return most > 1 ? [low, high] : [low, 1];
}

function trainingTraces(curves: Curves, name: string, view: View, colors: { series: string[] }): Trace[] {
  const { merged, rolledBack } = splitCurve(curves, name);
  const color = colors.series[name.startsWith("val/") ? 1 : 0]!;
  const main: Trace = { ...merged, label: "merged", kind: "main", color };
  const branches = rolledBack.map((line, i): Trace => ({ ...line, label: `rolled back ${i}`, kind: "rolled-back", color }));
  if (view.smoothing === 0) return [main, ...branches];
  const smoothed = { ...main, values: smooth(merged.steps, merged.values, view.smoothing) };
  return [smoothed, { ...main, label: "raw", kind: "raw" }, ...branches];
}

function machineTraces(curves: Curves, name: string, view: View, palette: string[]): Trace[] {
  const labels = [...view.machineLabels.values()];
  return machineLines(curves, name).map(({ machine, line }): Trace => {
    const label = view.machineLabels.get(machine ?? "") ?? "machine";
    return { ...line, label, kind: "main", color: palette[Math.max(0, labels.indexOf(label)) % palette.length]! };
  });
}

function traceKey(traces: readonly Trace[]): string {
  return traces.map(({ kind, label }) => `${kind} ${label}`).join();
}

/** Return the value at a row, or the last one before it. */
function valueAt(column: Column, row: number): number | null {
  for (let i = row; i >= 0; i--) if (column[i] !== undefined) return column[i]!;
  return null;
}

/** Draw a vertical line and a triangle under the axis where training resumed. */
function drawRestartMarkers(u: uPlot, curves: Curves, positionOf: PositionOf, color: string): void {
  const { ctx, bbox } = u;
  const pixel = window.devicePixelRatio;
  const bottom = bbox.top + bbox.height;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = color;
  ctx.lineWidth = pixel;
  ctx.font = `${LABEL_PX * pixel}px system-ui, sans-serif`;
  ctx.textAlign = "center";
  for (const marker of restartMarkers(curves)) {
    const at = positionOf({ steps: [marker.step], times: [marker.time ?? Number.NaN], values: [] })[0]!;
    const x = Math.round(u.valToPos(at, "x", true));
    if (!(x >= bbox.left && x <= bbox.left + bbox.width)) continue;
    ctx.setLineDash(marker.newAttempt ? [] : [2 * pixel, 3 * pixel]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bottom);
    ctx.stroke();
    ctx.beginPath();
    ctx.moveTo(x, bottom);
    ctx.lineTo(x - 4 * pixel, bottom + 6 * pixel);
    ctx.lineTo(x + 4 * pixel, bottom + 6 * pixel);
    ctx.fill();
    if (marker.newAttempt && marker.attempt !== null) {
      const label = `attempt ${marker.attempt}`;
      const half = ctx.measureText(label).width / 2;
      ctx.fillText(label, Math.min(x, bbox.left + bbox.width - half), bbox.top - 4 * pixel);
    }
  }
  ctx.restore();
}

function faint(color: string): string {
  return color.replace(/^rgb\((.*)\)$/, "rgba($1, 0.28)");
}
