import { useMemo, useState, useSyncExternalStore } from "react";
import type { Attempt } from "./machines";
import { isSystem, names, notches } from "../../live/curves";
import type { JobFeed } from "../../live/job-feed";
import { Panel, ProblemNote, Skeleton } from "../../components/parts";
import { Chart } from "./chart";
import type { XAxis } from "./axes";
import type { View } from "./plot";

/** Which epoch it is belongs on an axis, not on a chart. */
/** What others are drawn over, and what results are reckoned with: neither is a curve to look at. */
const UNSEEN = /^(epoch|time\/.*)$/;

export function CurvesPanel({ feed, attempts, startedAt, over }: {
  feed: JobFeed;
  attempts: readonly Attempt[];
  startedAt: string | null;
  over: boolean;
}) {
  const [x, setX] = useState<XAxis>("step");
  const [log, setLog] = useState(false);
  const [smoothing, setSmoothing] = useState(0);
  const all = useSyncExternalStore(feed.subscribe, () => names(feed.curves).join("\n")).split("\n").filter(Boolean);
  const restarts = useSyncExternalStore(feed.subscribe, () => notches(feed.curves).length);
  const loading = useSyncExternalStore(feed.subscribe, () => feed.loading);
  const error = useSyncExternalStore(feed.subscribe, () => feed.error);
  const slots = useSlots(attempts);
  const start = startedAt ? Date.parse(startedAt) / 1000 : 0;
  const view = useMemo<View>(() => ({ x, log, smoothing, start, slots }), [x, log, smoothing, start, slots]);

  const training = all.filter((name) => !isSystem(name) && !UNSEEN.test(name));
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
      <ProblemNote error={error} />
      {loading && training.length === 0 ? (
        <Skeleton rows={4} />
      ) : training.length === 0 ? (
        !error && <p className="empty small">{over ? "No step was reported." : "Curves appear here with the first step, by themselves."}</p>
      ) : (
        <>
          <div className="charts">
            {training.map((name) => (
              <Chart key={name} feed={feed} name={name} view={view} />
            ))}
          </div>
          {restarts > 0 && (
            <p className="legend dim">
              <span className="key notch" aria-hidden="true" /> went on from a checkpoint
              <span className="key lost" aria-hidden="true" /> lost work, done again
            </p>
          )}
        </>
      )}
      {system.length > 0 && <MachinesLoad feed={feed} names={system} view={view} />}
    </Panel>
  );
}

function MachinesLoad({ feed, names, view }: { feed: JobFeed; names: string[]; view: View }) {
  const [open, setOpen] = useState(false);
  return (
    <details className="system" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Machines’ load</summary>
      {open && (
        <>
          <p className="legend dim">
            {[...view.slots.values()].map((label, i) => (
              <span key={label}>
                <span className="swatch" style={{ background: `var(--series-${(i % 6) + 1})` }} aria-hidden="true" />
                {label}
              </span>
            ))}
          </p>
          <div className="charts">
            {names.map((name) => (
              <Chart key={name} feed={feed} name={name} view={view} />
            ))}
          </div>
        </>
      )}
    </details>
  );
}

/** "m0", "m1", and from the second attempt on "m0·2". The same map as long as the machines are the same. */
function useSlots(attempts: readonly Attempt[]): ReadonlyMap<string, string> {
  const known = attempts
    .flatMap((attempt) => attempt.machines.map(({ id, slot }) => `${id} m${slot}${attempt.no > 1 ? `·${attempt.no}` : ""}`))
    .join();
  return useMemo(() => new Map(known.split(",").map((pair) => pair.split(" ") as [string, string])), [known]);
}
