/** What is left of a budget over the schedule to come, as things are and with a change. */
import type { Schemas } from "../../api/client";
import { formatDollars, toMicro } from "../../lib/money";
import { formatTime } from "../../lib/time";

const [WIDTH, HEIGHT] = [600, 120];

type Points = Schemas["SpentBy"][];

export function Spending({ budget }: { budget: Schemas["WhatIfBudget"] }) {
  const { before, after, limit_before, limit_after } = budget;
  const [first, last] = [before[0], [before.at(-1), after.at(-1)].sort((a, b) => (a?.at ?? "").localeCompare(b?.at ?? "")).at(-1)];
  if (!first || !last) return null;
  const amounts = [...before, ...after].map(({ spent }) => toMicro(spent.amount));
  const top = [limit_before, limit_after].map((one) => (one ? toMicro(one.amount) : 0n)).concat(amounts).reduce((a, b) => (a > b ? a : b), 1n);
  const [start, end] = [Date.parse(first.at), Date.parse(last.at)];
  const x = (at: string) => ((Date.parse(at) - start) / Math.max(1, end - start)) * WIDTH;
  const y = (micro: bigint) => (Number(micro) / Number(top)) * HEIGHT;
  const line = (points: Points) => points.map(({ at, spent }) => `${x(at).toFixed(1)},${y(toMicro(spent.amount)).toFixed(1)}`).join(" ");
  const said = `${budget.kind} ${budget.owner}: ${ending(before)} spent in the end, ${ending(after)} with the change`;
  return (
    <figure className="burn-down" data-spending={budget.budget}>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={said}>
        {limit_after && <line className="committed" x1={0} x2={WIDTH} y1={y(toMicro(limit_after.amount))} y2={y(toMicro(limit_after.amount))} />}
        <polyline className="left" points={line(before)} />
        <polyline className="changed" points={line(after)} />
      </svg>
      <p className="of-axis">
        <time dateTime={first.at}>{formatTime(first.at)}</time>
        <time dateTime={last.at}>{formatTime(last.at)}</time>
      </p>
      <figcaption>
        {said}; limit {limit_before ? formatDollars(limit_before) : "none"}, then {limit_after ? formatDollars(limit_after) : "none"}. The
        broken line is with the change.
      </figcaption>
    </figure>
  );
}

function ending(points: Points): string {
  return formatDollars(points.at(-1)?.spent);
}
