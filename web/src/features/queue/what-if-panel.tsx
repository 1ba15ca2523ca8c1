/** What-ifs: another limit or weight of a budget, or something else with a queued job; nothing changes until it is applied. */
import { keepPreviousData, useMutation, useQuery } from "@tanstack/react-query";
import { type FormEvent, useId, useState } from "react";
import { api, body, type Schemas } from "../../api/client";
import { type Budget, budgets, me, queries, whatIf } from "../../api/queries";
import { Panel } from "../../components/panel";
import { ButtonWithReason } from "../../components/button-with-reason";
import { amountProblem, typedDollars } from "../../lib/amount";
import { ProblemNote } from "../../components/problem-note";
import { TableScroll } from "../../components/table-scroll";
import { Time } from "../../components/time";
import { formatDollars, toMicro } from "../../lib/money";
import { zoneName } from "../../lib/time";
import { Link } from "../../router";
import { Sentence } from "../../components/sentence";
import { Spending } from "./spending";

type Change = "first" | "any_machine" | "stop";
const CHANGES: Record<Change, string> = {
  first: "goes before its owner's other jobs",
  any_machine: "takes any machine",
  stop: "leaves the queue",
};

export function WhatIfPanel({ queued }: { queued: readonly Schemas["QueueEntry"][] }) {
  const all = (useQuery(budgets).data ?? []).filter(({ kind }) => kind !== "job");
  const team = all.find(({ kind }) => kind === "team");
  const [budgetId, setBudgetId] = useState("");
  const [limit, setLimit] = useState("");
  const [job, setJob] = useState("");
  const [change, setChange] = useState<Change>("first");
  const [asked, setAsked] = useState<Schemas["WhatIfRequest"] | null>(null);
  const ids = { budget: useId(), limit: useId(), job: useId(), change: useId(), problem: useId() };
  const budget = all.find(({ id }) => id === budgetId) ?? team;
  const dollars = typedDollars(limit);
  const chosen = queued.some((one) => one.job === job) ? job : "";
  const problem = dollars === "" ? "" : amountProblem(limit);
  const missing = dollars || chosen ? "" : "Enter another limit, or choose a job.";
  function ask(event: FormEvent) {
    event.preventDefault();
    if (problem || missing) return;
    setAsked({
      budgets: dollars && budget ? [{ budget: budget.id, limit: dollars, weight: null }] : [],
      jobs: chosen ? [{ job: chosen, first: change === "first", any_machine: change === "any_machine", stop: change === "stop" }] : [],
    });
  }
  return (
    <Panel title="What if" className="what-if">
      <form onSubmit={ask} noValidate>
        <div className="row">
          <label htmlFor={ids.budget}>Budget</label>
          <select id={ids.budget} value={budget?.id ?? ""} onChange={(event) => setBudgetId(event.target.value)}>
            {all.map((one) => (
              <option key={one.id} value={one.id}>
                {one.kind} {one.owner}
              </option>
            ))}
          </select>
          <label htmlFor={ids.limit}>Another limit, dollars</label>
          <input
            id={ids.limit}
            inputMode="decimal"
            value={limit}
            placeholder={budget?.limit?.amount ?? "none"}
            aria-invalid={problem !== ""}
            aria-describedby={problem ? ids.problem : undefined}
            onChange={(event) => setLimit(event.target.value)}
          />
        </div>
        <div className="row">
          <label htmlFor={ids.job}>Job</label>
          <select id={ids.job} value={chosen} onChange={(event) => setJob(event.target.value)}>
            <option value="">none</option>
            {queued.map((one) => (
              <option key={one.job} value={one.job}>
                {one.position}: {one.name}
              </option>
            ))}
          </select>
          <label htmlFor={ids.change}>Change</label>
          <select id={ids.change} value={change} onChange={(event) => setChange(event.target.value as Change)}>
            {(Object.keys(CHANGES) as Change[]).map((one) => (
              <option key={one} value={one}>
                {CHANGES[one]}
              </option>
            ))}
          </select>
        </div>
        {problem && <p id={ids.problem} className="note bad" role="alert">{problem}</p>}
        <div className="row">
          <ButtonWithReason type="submit" className="primary" reason={problem || missing} silent={problem !== ""}>
            Show what would change
          </ButtonWithReason>
          {asked && (
            <button type="button" onClick={() => setAsked(null)}>
              Close
            </button>
          )}
          <span className="muted">Nothing is changed by looking.</span>
        </div>
      </form>
      {asked && <Answer asked={asked} all={all} done={() => setAsked(null)} />}
    </Panel>
  );
}

function Answer({ asked, all, done }: { asked: Schemas["WhatIfRequest"]; all: readonly Budget[]; done: () => void }) {
  const { data, error, refetch } = useQuery({ ...whatIf(asked), placeholderData: keepPreviousData });
  return (
    <div data-what-if>
      <ProblemNote error={error} retry={() => void refetch()} />
      {data && (
        <>
          <p role="status">
            <strong><Sentence text={data.summary.text} /></strong>
          </p>
          {data.jobs.length > 0 && <Moves jobs={data.jobs} />}
          {data.budgets.map((one) => (
            <Spending key={one.budget} budget={one} />
          ))}
          <Apply asked={asked} all={all} done={done} />
        </>
      )}
    </div>
  );
}

function Moves({ jobs }: { jobs: Schemas["WhatIfJob"][] }) {
  return (
    <TableScroll label="Starts, as it is and with the change" short>
      <table>
        <thead>
          <tr>
            <th>Job</th>
            <th className="num">Starts ({zoneName()})</th>
            <th className="num">Would start</th>
          </tr>
        </thead>
        <tbody>
          {jobs.map(({ job, name, before, after }) => (
            <tr key={job} data-moves={job}>
              <td>
                <Link to={`/jobs/${job}`}>{name}</Link>
              </td>
              <td className="num">{before ? <Time at={before.at} /> : "unknown"}</td>
              <td className="num">{after ? <Time at={after.at} /> : "unknown"}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </TableScroll>
  );
}

/** Sets the limit, for whom may. What a job would have to change is a matter of submitting it again. */
function Apply({ asked, all, done }: { asked: Schemas["WhatIfRequest"]; all: readonly Budget[]; done: () => void }) {
  const role = useQuery(me).data?.role;
  const [change] = asked.budgets ?? [];
  const budget = all.find(({ id }) => id === change?.budget);
  const may = budget && (role === "admin" || (role === "lead" && budget.kind === "member"));
  const apply = useMutation({
    mutationFn: async () =>
      body(
        await api.PUT("/v1/budgets/{budget_id}", {
          params: { path: { budget_id: budget!.id }, header: { "if-match": budget!.etag } },
          body: { limit: change!.limit!, reason: "after a what-if" },
        }),
      ),
    onSuccess: (saved) => {
      queries.setQueryData<Budget[]>(["budgets"], (old) => old?.map((one) => (one.id === saved.id ? saved : one)));
      void queries.invalidateQueries({ queryKey: ["queue"] });
      done();
    },
  });
  if (!may || !change?.limit) return null;
  return (
    <div className="row">
      <button type="button" disabled={apply.isPending} onClick={() => apply.mutate()}>
        Set this limit: {formatDollars(toMicro(change.limit))}
      </button>
      <ProblemNote error={apply.error} />
    </div>
  );
}
