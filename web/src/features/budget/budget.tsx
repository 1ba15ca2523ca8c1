import { useInfiniteQuery, useMutation, useQuery } from "@tanstack/react-query";
import { type FormEvent, useId, useState } from "react";
import { api, body } from "../../api/client";
import { type Budget, budgets, jobPages, me, queries } from "../../api/resources";
import { dollars, exact, micro, share } from "../../lib/money";
import { percent } from "../../lib/number";
import { Command, Page, ProblemNote, Skeleton } from "../../components/parts";
import { Link } from "../../router";

/** The budget with a limit that has least left: what the next job will meet first. */
export function tightest(all: readonly Budget[]): Budget | undefined {
  const limited = all.filter((one) => one.left !== null && one.kind !== "job");
  return limited.reduce<Budget | undefined>((least, one) => (!least || micro(one.left!.amount) < micro(least.left!.amount) ? one : least), undefined);
}

export function BudgetPage() {
  const all = useQuery(budgets);
  const admin = useQuery(me).data?.role === "admin";
  return (
    <Page title="Budget">
      <p className="lead">
        Money is set aside before a machine is rented and settled when it has ended, so a budget is never overspent. Prices of the
        local provider are simulated.
      </p>
      <ProblemNote error={all.error} retry={() => void all.refetch()} />
      <WaitingForMoney />
      {all.isPending && <Skeleton rows={3} />}
      <div className="budgets">
        {all.data?.filter((one) => one.kind !== "job").map((one) => <Card key={one.id} budget={one} admin={admin} />)}
      </div>
      <p className="dim">
        From a terminal: <Command text="shoestring budget show" />
      </p>
    </Page>
  );
}

/** Jobs that stand still for want of money, by name. */
function WaitingForMoney() {
  const queued = useInfiniteQuery(jobPages("state=queued")).data?.pages[0]?.jobs ?? [];
  const paused = useInfiniteQuery(jobPages("state=paused")).data?.pages[0]?.jobs ?? [];
  const waiting = [...queued.filter((job) => job.wait_reason === "budget"), ...paused.filter((job) => job.sentence.includes("money"))];
  if (waiting.length === 0) return null;
  return (
    <div className="note warn" role="status">
      <strong>{waiting.length === 1 ? "One job waits for money" : `${waiting.length} jobs wait for money`}</strong>
      <ul>
        {waiting.map((job) => (
          <li key={job.id}>
            <Link to={`/jobs/${job.id}`}>{job.name}</Link>: {job.sentence}
          </li>
        ))}
      </ul>
      <p className="dim">Raise a limit below; queued jobs start by themselves, paused ones with Resume on their page.</p>
    </div>
  );
}

const KINDS: Record<string, string> = { org: "Organisation", team: "Team", member: "Member" };

function Card({ budget, admin }: { budget: Budget; admin: boolean }) {
  const [editing, setEditing] = useState(false);
  const [posted, held, over] = [micro(budget.posted.amount), micro(budget.held.amount), micro(budget.overdraft.amount)];
  const limit = budget.limit ? micro(budget.limit.amount) : null;
  const whole = limit !== null && limit > posted + held ? limit : posted + held;
  return (
    <section className="panel budget" aria-label={`${KINDS[budget.kind] ?? budget.kind} ${budget.owner}`} data-budget={budget.kind}>
      <header>
        <h2>
          <span className="dim">{KINDS[budget.kind] ?? budget.kind}</span> {budget.owner}
        </h2>
        {admin && !editing && (
          <button type="button" className="small" onClick={() => setEditing(true)}>
            Set limit
          </button>
        )}
      </header>
      {limit !== null && (
        <div className="money-bar" role="img" aria-label={`${dollars(posted)} spent and ${dollars(held)} held of ${dollars(limit)}`}>
          <span className="spent" style={{ width: percentOf(posted, whole) }} />
          <span className="held" style={{ width: percentOf(held, whole) }} />
        </div>
      )}
      <dl className="figures">
        <Figure name="Limit" value={budget.limit ? dollars(budget.limit) : "none"} />
        <Figure name="Spent" value={dollars(budget.posted)} title={exact(budget.posted)} mark="spent" note={limit ? percent(share(posted, limit)) : ""} />
        <Figure name="Held" value={dollars(budget.held)} title={exact(budget.held)} mark="held" />
        <Figure name="Left" value={budget.left ? dollars(budget.left) : "–"} strong />
      </dl>
      {over > 0n && (
        <p className="note bad">
          <strong>Overdraft {dollars(over)}.</strong> More is spent and held than the limit allows; running jobs save and pause, and
          nothing starts until it is repaid or the limit is raised.
        </p>
      )}
      {editing && <LimitForm budget={budget} done={() => setEditing(false)} />}
    </section>
  );
}

function Figure({ name, value, title, mark, note, strong }: { name: string; value: string; title?: string; mark?: string; note?: string; strong?: boolean }) {
  return (
    <div>
      <dt>
        {mark && <span className={`swatch ${mark}`} aria-hidden="true" />}
        {name}
      </dt>
      <dd title={title} className={strong ? "strong" : ""}>
        {value} {note && <span className="dim">{note}</span>}
      </dd>
    </div>
  );
}

function LimitForm({ budget, done }: { budget: Budget; done: () => void }) {
  const id = useId();
  const [limit, setLimit] = useState(budget.limit?.amount ?? "");
  const [reason, setReason] = useState("");
  const change = useMutation({
    mutationFn: async () =>
      body(
        await api.PUT("/v1/budgets/{budget_id}", {
          params: { path: { budget_id: budget.id }, header: { "if-match": budget.etag } },
          body: { limit: limit.trim().replace(/^\$/, ""), reason },
        }),
      ),
    onSuccess: (changed) => {
      queries.setQueryData<Budget[]>(["budgets"], (old) => old?.map((one) => (one.id === changed.id ? changed : one)));
      done();
    },
    onError: () => void queries.invalidateQueries({ queryKey: ["budgets"] }),
  });
  const taken = micro(budget.posted.amount) + micro(budget.held.amount);
  const valid = /^\$?\d{1,12}(\.\d{1,6})?$/.test(limit.trim());
  const cut = valid && micro(limit.trim().replace(/^\$/, "")) < taken;
  return (
    <form
      className="limit"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        change.mutate();
      }}
    >
      <div className="row">
        <div className="field">
          <label htmlFor={`${id}-limit`}>New limit, dollars</label>
          <input id={`${id}-limit`} inputMode="decimal" autoComplete="off" value={limit} onChange={(event) => setLimit(event.target.value)} />
        </div>
        <div className="field grow">
          <label htmlFor={`${id}-why`}>Why (kept in the record)</label>
          <input id={`${id}-why`} value={reason} maxLength={200} onChange={(event) => setReason(event.target.value)} />
        </div>
      </div>
      {cut && (
        <p className="note warn">
          {dollars(taken)} is spent or held already. With this limit running jobs save a checkpoint, their machines end, and the rest is
          shown as overdraft.
        </p>
      )}
      {!valid && limit !== "" && <p className="field-error">Write dollars as a plain decimal such as 25.00.</p>}
      <ProblemNote error={change.error} />
      <div className="row end">
        <button type="button" onClick={done}>Cancel</button>
        <button type="submit" className="primary" disabled={!valid || change.isPending}>
          {change.isPending ? "Saving…" : "Save limit"}
        </button>
      </div>
    </form>
  );
}

function percentOf(part: bigint, whole: bigint): string {
  return `${share(part, whole) * 100}%`;
}
