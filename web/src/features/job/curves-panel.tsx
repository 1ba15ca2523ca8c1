import { type ReactNode, useMemo, useState, useSyncExternalStore } from "react";
import type { Attempt } from "./machines-panel";
import { isConstant, isSystem, metricNames, restartMarkers, splitCurve } from "../../live/curves";
import type { JobFeed } from "../../live/job-feed";
import { Async } from "../../components/async";
import { Panel } from "../../components/panel";
import { describeStalls } from "./input-stalls";
import { formatMetric } from "../../lib/number";
import { MetricChart } from "./metric-chart";
import type { XAxis } from "./plot-axes";
import type { View } from "./metric-plot";
import { useFeed } from "./use-feed";

/**
 * Metrics without a chart: `epoch` is an axis of the others, `time/…` are timings that results are computed from, and
 * `stall/…` are summed up in a line.
 */
const HIDDEN = /^(epoch|(time|stall)\/.*)$/;

const NO_LABELS: ReadonlyMap<string, string> = new Map();

export function CurvesPanel({ feed, attempts, startedAt, ended }: {
  feed: JobFeed;
  attempts: readonly Attempt[];
  startedAt: string | null;
  ended: boolean;
}) {
  const [x, setX] = useState<XAxis>("step");
  const [log, setLog] = useState(false);
  const [smoothing, setSmoothing] = useState(0);
  const all = useSyncExternalStore(feed.subscribe, () => metricNames(feed.curves).join("\n")).split("\n").filter(Boolean);
  const restarts = useSyncExternalStore(feed.subscribe, () => restartMarkers(feed.curves).length);
  const constants = useSyncExternalStore(feed.subscribe, () => metricNames(feed.curves).filter((name) => isConstant(feed.curves, name)).join("\n")).split("\n");
  const stalls = useSyncExternalStore(feed.subscribe, () => describeStalls(feed.curves));
  const reading = useFeed(feed);
  const machineLabels = useMachineLabels(attempts);
  const start = startedAt ? Date.parse(startedAt) / 1000 : 0;
  const systemView = useMemo<View>(() => ({ x, log, smoothing, start, machineLabels }), [x, log, smoothing, start, machineLabels]);
  // Without what it doesn't show, which comes later: a plot that is made anew loses what the pointer is doing in it.
  const from = x === "time" ? start : 0;
  const view = useMemo<View>(() => ({ x, log, smoothing, start: from, machineLabels: NO_LABELS }), [x, log, smoothing, from]);

  const training = all.filter((name) => !isSystem(name) && !HIDDEN.test(name));
  const [steady, moving] = [training.filter((name) => constants.includes(name)), training.filter((name) => !constants.includes(name))];
  const system = all.filter(isSystem);
  const axes: XAxis[] = all.includes("epoch") ? ["step", "epoch", "time"] : ["step", "time"];
  return (
    <Panel
      title="Curves"
      className="curves"
      aside={
        training.length > 0 && (
          <div className="tools">
            <label className="range">
              Smoothing
              <input type="range" min={0} max={0.99} step={0.01} value={smoothing} onChange={(event) => setSmoothing(Number(event.target.value))} />
              <output>{smoothing.toFixed(2)}</output>
            </label>
            <label className="check">
              <input type="checkbox" checked={log} onChange={(event) => setLog(event.target.checked)} />
              Log scale
            </label>
            <div className="segments" role="group" aria-label="Horizontal axis">
              {axes.map((one) => (
                <button key={one} type="button" aria-pressed={x === one} onClick={() => setX(one)}>
                  {one}
                </button>
              ))}
            </div>
          </div>
        )
      }
    >
      <Async reading={training.length > 0 ? { ...reading, data: feed } : reading} rows={4}>
        {() =>
          training.length === 0 ? (
            <p className="empty small">{ended ? "No steps were reported." : "Curves appear here after the first step."}</p>
          ) : (
            <>
              <Charts feed={feed} names={moving} view={view} />
              {restarts > 0 && (
                <p className="legend muted">
                  <span>
                    <span className="key restart" aria-hidden="true" /> resumed from checkpoint
                  </span>
                  <span>
                    <span className="key rolled-back" aria-hidden="true" /> rolled-back steps (recomputed)
                  </span>
                </p>
              )}
              {stalls && <p className="legend muted">{stalls}</p>}
              {steady.length > 0 && (
                <Fold summary={`Constant: ${steady.map((name) => `${name} ${formatMetric(name, valueOf(feed, name))}`).join(", ")}`}>
                  <Charts feed={feed} names={steady} view={view} />
                </Fold>
              )}
            </>
          )
        }
      </Async>
      {system.length > 0 && <SystemMetrics feed={feed} names={system} view={systemView} />}
    </Panel>
  );
}

function Charts({ feed, names, view }: { feed: JobFeed; names: string[]; view: View }) {
  return (
    <div className="charts">
      {names.map((name) => (
        <MetricChart key={name} feed={feed} name={name} view={view} />
      ))}
    </div>
  );
}

/** What is drawn only when it is opened. */
function Fold({ summary, children }: { summary: string; children: ReactNode }) {
  const [open, setOpen] = useState(false);
  return (
    <details className="fold" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>{summary}</summary>
      {open && children}
    </details>
  );
}

function SystemMetrics({ feed, names, view }: { feed: JobFeed; names: string[]; view: View }) {
  return (
    <Fold summary="System metrics">
      <p className="legend muted">
        {[...view.machineLabels.values()].map((label, i) => (
          <span key={label}>
            <span className="swatch" style={{ background: `var(--series-${(i % 6) + 1})` }} aria-hidden="true" />
            {label}
          </span>
        ))}
      </p>
      <Charts feed={feed} names={names} view={view} />
    </Fold>
  );
}

function valueOf(feed: JobFeed, name: string): number | undefined {
  return splitCurve(feed.curves, name).merged.values.at(-1);
}

/** Machine labels by id: "m0", "m1"; from the second attempt on "m0·2". The map is stable while the machines are. */
function useMachineLabels(attempts: readonly Attempt[]): ReadonlyMap<string, string> {
  const known = attempts
    .flatMap((attempt) => attempt.machines.map(({ id, slot }) => `${id} m${slot}${attempt.number > 1 ? `·${attempt.number}` : ""}`))
    .join();
  return useMemo(() => new Map(known.split(",").map((pair) => pair.split(" ") as [string, string])), [known]);
}
