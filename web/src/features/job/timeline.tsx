import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import type { Schemas } from "../../api/client";
import { events } from "../../api/resources";
import { tellEvent } from "../../lib/events";
import { Panel, ProblemNote, Skeleton } from "../../components/parts";
import { clock, moment } from "../../lib/time";

const SHOWN = 300;

export function TimelinePanel({ id, attempts }: { id: string; attempts: Schemas["Attempt"][] }) {
  const list = useQuery(events(id));
  const [all, setAll] = useState(false);
  const slots = new Map(attempts.flatMap(({ machines }) => machines.map(({ id, slot }) => [id, `m${slot}`] as const)));
  const told = (list.data ?? []).map((event) => ({ event, ...tellEvent(event, slots) }));
  const shown = told.filter(({ routine }) => all || !routine).slice(-SHOWN).reverse();
  return (
    <Panel
      title="Timeline"
      aside={
        <label className="check">
          <input type="checkbox" checked={all} onChange={(event) => setAll(event.target.checked)} />
          Money and other routine
        </label>
      }
    >
      <ProblemNote error={list.error} />
      {list.isPending && <Skeleton />}
      <ol className="timeline" tabIndex={0} aria-label="Events, newest first">
        {shown.map(({ event, head, rest, tone }) => (
          <li key={event.cursor} className={tone}>
            <time dateTime={event.at} title={moment(event.at)}>
              {clock(event.at)}
            </time>
            <span>
              <strong>{head}</strong> {rest}
            </span>
            <span className="dim">{event.actor}</span>
          </li>
        ))}
      </ol>
    </Panel>
  );
}
