import { memo, useEffect, useRef, useState } from "react";
import "uplot/dist/uPlot.min.css";
import { type Curves, splitCurve, isSystem, type Line, machineLines } from "../../live/curves";
import type { JobFeed } from "../../live/job-feed";
import { counted, formatCount, formatMetric } from "../../lib/number";
import { useIsDark } from "../../lib/theme";
import { formatTime, zoneName } from "../../lib/time";
import { TableScroll } from "../../components/table-scroll";
import { plotMetric, resetZoom, type View, type Zoom } from "./metric-plot";

const MAX_ROWS = 200;

/** A metric: its name, latest value, plot, and a table of its values. */
export const MetricChart = memo(function MetricChart({ feed, name, view }: { feed: JobFeed; name: string; view: View }) {
  const figure = useRef<HTMLElement>(null);
  const readout = useRef<HTMLSpanElement>(null);
  const canvas = useRef<HTMLDivElement>(null);
  const zoom = useRef<Zoom | null>(null);
  const dark = useIsDark();
  const [zoomed, setZoomed] = useState(false);
  useEffect(
    () => plotMetric(feed, name, view, { host: canvas.current!, readout: readout.current!, figure: figure.current!, zoom }, setZoomed),
    [feed, name, view, dark], // redrawn in the colours of the other theme
  );
  const over = isSystem(name) || view.x === "time" ? "time" : `${view.x}s`;
  return (
    <figure ref={figure} className="chart" data-metric={name}>
      <figcaption>
        <h3>{name}</h3>
        {zoomed && (
          <button type="button" className="small quiet" onClick={() => resetZoom(name)}>
            Reset zoom
          </button>
        )}
        <span ref={readout} className="readout" />
      </figcaption>
      <div ref={canvas} className="canvas" role="img" aria-label={`${name} over ${over}; the values are in the table below`} />
      <ValuesTable feed={feed} name={name} machineLabels={view.machineLabels} />
    </figure>
  );
});

/** The plotted values as a table, for screen readers and for download. */
function ValuesTable({ feed, name, machineLabels }: { feed: JobFeed; name: string; machineLabels: View["machineLabels"] }) {
  const [open, setOpen] = useState(false);
  return (
    <details className="values" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Values</summary>
      {open && <Rows name={name} rows={rowsOf(feed.curves, name, machineLabels)} />}
    </details>
  );
}

interface Row {
  step: number;
  time: number;
  value: number;
  series: string;
}

function Rows({ name, rows }: { name: string; rows: Row[] }) {
  const shown = rows.slice(-MAX_ROWS);
  const csv = ["step,unix_s,value,series", ...rows.map((row) => `${row.step},${row.time},${row.value},${row.series}`)].join("\n");
  return (
    <>
      <p className="row">
        <span className="muted">{rows.length > shown.length ? `Last ${shown.length} of ${formatCount(rows.length)}` : counted(rows.length, "value")}</span>
        <a className="button small quiet" download={`${name.replaceAll("/", "-")}.csv`} href={`data:text/csv;charset=utf-8,${encodeURIComponent(csv)}`}>
          CSV
        </a>
      </p>
      <TableScroll short label={`Values of ${name}`}>
        <table>
          <thead>
            <tr>
              <th className="num">{isSystem(name) ? `Time (${zoneName()})` : "Step"}</th>
              <th className="num">Value</th>
              <th>Series</th>
            </tr>
          </thead>
          <tbody>
            {shown.map((row, i) => (
              <tr key={i}>
                <td className="num">{isSystem(name) ? formatTime(row.time * 1000) : formatCount(row.step)}</td>
                <td className="num">{formatMetric(name, row.value)}</td>
                <td className="muted">{row.series}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </TableScroll>
    </>
  );
}

function rowsOf(curves: Curves, name: string, machineLabels: View["machineLabels"]): Row[] {
  const lines: [string, Line][] = [];
  if (isSystem(name)) {
    for (const { machine, line } of machineLines(curves, name)) lines.push([machineLabels.get(machine ?? "") ?? "machine", line]);
  } else {
    const { merged, rolledBack } = splitCurve(curves, name);
    lines.push(["merged", merged], ...rolledBack.map((line): [string, Line] => ["rolled back", line]));
  }
  return lines.flatMap(([series, line]) => line.steps.map((step, i) => ({ step, time: line.times[i]!, value: line.values[i]!, series })));
}
