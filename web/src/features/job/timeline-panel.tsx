import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import type { Schemas } from "../../api/client";
import { events } from "../../api/queries";
import { describeEvent } from "../../lib/event-text";
import { Panel } from "../../components/panel";
import { ProblemNote } from "../../components/problem-note";
import { Skeleton } from "../../components/skeleton";
import { formatClock, formatDateTime } from "../../lib/time";

const MAX_SHOWN = 300;

export function TimelinePanel({ id, attempts }: { id: string; attempts: Schemas["Attempt"][] }) {
  const list = useQuery(events(id));
  const [showRoutine, setShowRoutine] = useState(false);
  const machineLabels = new Map(attempts.flatMap(({ machines }) => machines.map(({ id, slot }) => [id, `m${slot}`] as const)));
  const described = (list.data ?? []).map((event) => ({ event, ...describeEvent(event, machineLabels) }));
  const shown = described.filter(({ routine }) => showRoutine || !routine).slice(-MAX_SHOWN).reverse();
  return (
    <Panel
      title="Timeline"
      aside={
        <label className="check">
          <input type="checkbox" checked={showRoutine} onChange={(event) => setShowRoutine(event.target.checked)} />
          Show billing and system events
        </label>
      }
    >
      <ProblemNote error={list.error} />
      {list.isPending && <Skeleton />}
      <ol className="timeline" tabIndex={0} aria-label="Events, newest first">
        {shown.map(({ event, title, detail, tone }) => (
          <li key={event.cursor} className={tone}>
            <time dateTime={event.at} title={formatDateTime(event.at)}>
              {formatClock(event.at)}
            </time>
            <span>
              <strong>{title}</strong> {detail}
            </span>
            <span className="muted">{event.actor}</span>
          </li>
        ))}
      </ol>
    </Panel>
  );
}
