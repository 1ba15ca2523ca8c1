import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import type { Schemas } from "../../api/client";
import { events } from "../../api/queries";
import { describeEvent, groupRepeats } from "../../lib/event-text";
import { zoneName } from "../../lib/time";
import { Async } from "../../components/async";
import { Panel } from "../../components/panel";
import { Sentence } from "../../components/sentence";
import { Time } from "../../components/time";

const MAX_SHOWN = 300;

export function TimelinePanel({ id, attempts }: { id: string; attempts: Schemas["Attempt"][] }) {
  const [showRoutine, setShowRoutine] = useState(false);
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
      <Async reading={useQuery(events(id))}>{(list) => <Timeline events={list} attempts={attempts} showRoutine={showRoutine} />}</Async>
    </Panel>
  );
}

function Timeline({ events, attempts, showRoutine }: { events: Schemas["Event"][]; attempts: Schemas["Attempt"][]; showRoutine: boolean }) {
  const machineLabels = new Map(attempts.flatMap(({ machines }) => machines.map(({ id, slot }) => [id, `m${slot}`] as const)));
  const described = events.map((event) => ({ event, ...describeEvent(event, machineLabels) }));
  const shown = described.filter(({ routine }) => showRoutine || !routine).reverse();
  return (
    <>
      <ol className="timeline" tabIndex={0} aria-label="Events, newest first">
        {groupRepeats(shown)
          .slice(0, MAX_SHOWN)
          .map(({ title, events: [newest, ...others] }) => (
            <li key={(others.at(-1) ?? newest).event.cursor} className={newest.tone}>
              <Time at={newest.event.at} />
              {others.length === 0 ? (
                <span>
                  <strong>{title}</strong> <Sentence text={newest.detail} />
                </span>
              ) : (
                <details>
                  <summary>
                    <strong>{title}</strong>
                  </summary>
                  {[newest, ...others].map(({ event, title, detail }) => (
                    <p key={event.cursor}>
                      <Time at={event.at} /> {title}. <Sentence text={detail} />
                    </p>
                  ))}
                </details>
              )}
              <span className="muted">{newest.event.actor}</span>
            </li>
          ))}
      </ol>
      <p className="footnote muted">Times are in {zoneName()}.</p>
    </>
  );
}
