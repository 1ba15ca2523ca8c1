import { useMemo, useState, useSyncExternalStore } from "react";
import type { Attempt } from "./machines";
import { isSystem, names, notches } from "../curves";
import type { JobFeed } from "../job-feed";
import { Panel, ProblemNote, Skeleton } from "../parts";
import { Chart, type View } from "./chart";

export function CurvesPanel({ feed, attempts, startedAt, over }: { feed: JobFeed; attempts: readonly Attempt[]; startedAt: string | null; over: boolean }) {
  const [view, setView] = useState<View>({ x: "step", log: false, smoothing: 0 });
  const all = useSyncExternalStore(feed.subscribe, () => names(feed.curves).join("\n")).split("\n").filter(Boolean);
  const restarts = useSyncExternalStore(feed.subscribe, () => notches(feed.curves).length);
  const loading = useSyncExternalStore(feed.subscribe, () => feed.loading);
  const error = useSyncExternalStore(feed.subscribe, () => feed.error);
  const [training, system] = [all.filter((name) => !isSystem(name)), all.filter(isSystem)];
  const start = startedAt ? Date.parse(startedAt) / 1000 : 0;
  const known = attempts.flatMap((attempt) => attempt.machines.map((machine) => `${machine.id} m${machine.slot}${attempt.no > 1 ? `·${attempt.no}` : ""}`)).join();
  const slots = useMemo(() => new Map(known.split(",").map((pair) => pair.split(" ") as [string, string])), [known]);
  const chart = (name: string) => <Chart key={name} feed={feed} name={name} view={view} start={start} slots={slots} />;
  return (
    <Panel
      title="Curves"
      className="curves"
      aside={
        training.length > 0 && (
          <div className="tools">
            <label className="range">
              Smoothing
              <input
                type="range"
                min={0}
                max={0.99}
                step={0.01}
                value={view.smoothing}
                onChange={(event) => setView({ ...view, smoothing: Number(event.target.value) })}
              />
              <output>{view.smoothing.toFixed(2)}</output>
            </label>
            <label className="check">
              <input type="checkbox" checked={view.log} onChange={(event) => setView({ ...view, log: event.target.checked })} />
              Log
            </label>
            <div className="segments" role="group" aria-label="Horizontal axis">
              {(["step", "time"] as const).map((x) => (
                <button key={x} type="button" aria-pressed={view.x === x} onClick={() => setView({ ...view, x })}>
                  {x}
                </button>
              ))}
            </div>
          </div>
        )
      }
    >
      <ProblemNote error={error} />
      {loading && training.length === 0 ? (
        <Skeleton rows={4} />
      ) : training.length === 0 ? (
        !error && <p className="empty small">{over ? "No step was reported." : "Curves appear here with the first step, by themselves."}</p>
      ) : (
        <>
          <div className="charts">{training.map(chart)}</div>
          {restarts > 0 && (
            <p className="legend dim">
              <span className="key notch" aria-hidden="true" /> training went on from a checkpoint <span className="key lost" aria-hidden="true" /> lost
              work, done again after it
            </p>
          )}
        </>
      )}
      {system.length > 0 && (
        <details className="system">
          <summary>Machines' load ({system.length} measures)</summary>
          <div className="charts">{system.map(chart)}</div>
        </details>
      )}
    </Panel>
  );
}
