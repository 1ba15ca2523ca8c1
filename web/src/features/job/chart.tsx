import { memo, useEffect, useRef, useState } from "react";
import "uplot/dist/uPlot.min.css";
import { type Curves, drawn, isSystem, type Line, onMachines } from "../../live/curves";
import type { JobFeed } from "../../live/job-feed";
import { count, metric } from "../../lib/number";
import { useIsDark } from "../../lib/theme";
import { plotMetric, type View } from "./plot";

const AT_ONCE_ROWS = 200;

/** A metric: its name, its newest value, its curve, and the numbers behind it. */
export const Chart = memo(function Chart({ feed, name, view }: { feed: JobFeed; name: string; view: View }) {
  const figure = useRef<HTMLElement>(null);
  const readout = useRef<HTMLSpanElement>(null);
  const canvas = useRef<HTMLDivElement>(null);
  const dark = useIsDark();
  useEffect(
    () => plotMetric(feed, name, view, canvas.current!, readout.current!, figure.current!),
    [feed, name, view, dark], // painted again in the other colours
  );
  const over = isSystem(name) || view.x === "time" ? "time" : `${view.x}s`;
  return (
    <figure ref={figure} className="chart" data-metric={name}>
      <figcaption>
        <h3>{name}</h3>
        <span ref={readout} className="readout" />
      </figcaption>
      <div ref={canvas} className="canvas" role="img" aria-label={`${name} over ${over}; the numbers are in the table that follows`} />
      <Numbers feed={feed} name={name} slots={view.slots} />
    </figure>
  );
});

/** What the canvas shows, as a table for those who can't see it and a file for those who want it. */
function Numbers({ feed, name, slots }: { feed: JobFeed; name: string; slots: View["slots"] }) {
  const [open, setOpen] = useState(false);
  return (
    <details className="numbers" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Numbers</summary>
      {open && <Table name={name} rows={rowsOf(feed.curves, name, slots)} />}
    </details>
  );
}

interface Row {
  step: number;
  time: number;
  value: number;
  series: string;
}

function Table({ name, rows }: { name: string; rows: Row[] }) {
  const shown = rows.slice(-AT_ONCE_ROWS);
  const csv = ["step,unix_s,value,series", ...rows.map((row) => `${row.step},${row.time},${row.value},${row.series}`)].join("\n");
  return (
    <>
      <p className="row">
        <span className="dim">{rows.length > shown.length ? `The last ${shown.length} of ${count(rows.length)}` : `${rows.length} values`}</span>
        <a className="button small quiet" download={`${name.replaceAll("/", "-")}.csv`} href={`data:text/csv;charset=utf-8,${encodeURIComponent(csv)}`}>
          CSV
        </a>
      </p>
      <div className="table-box short" tabIndex={0} role="region" aria-label={`Values of ${name}`}>
        <table>
          <thead>
            <tr>
              <th className="num">{isSystem(name) ? "Time" : "Step"}</th>
              <th className="num">Value</th>
              <th>Series</th>
            </tr>
          </thead>
          <tbody>
            {shown.map((row, i) => (
              <tr key={i}>
                <td className="num">{isSystem(name) ? new Date(row.time * 1000).toLocaleTimeString() : count(row.step)}</td>
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

function rowsOf(curves: Curves, name: string, slots: View["slots"]): Row[] {
  const lines: [string, Line][] = [];
  if (isSystem(name)) {
    for (const { machine, line } of onMachines(curves, name)) lines.push([slots.get(machine ?? "") ?? "machine", line]);
  } else {
    const { kept, lost } = drawn(curves, name);
    lines.push(["merged", kept], ...lost.map((line): [string, Line] => ["lost work", line]));
  }
  return lines.flatMap(([series, line]) => line.steps.map((step, i) => ({ step, time: line.times[i]!, value: line.values[i]!, series })));
}
