/** Forms that change one value of a budget, with the reason for it. */
import { useMutation } from "@tanstack/react-query";
import { type FormEvent, type KeyboardEvent, type ReactNode, useEffect, useId, useRef, useState } from "react";
import { api, body, newIdempotencyKey } from "../../api/client";
import { type Budget, queries } from "../../api/queries";
import { amountProblem, typedDollars } from "../../lib/amount";
import { formatDollars, toMicro } from "../../lib/money";
import { ButtonWithReason } from "../../components/button-with-reason";
import { ProblemNote } from "../../components/problem-note";

const MAX_WEIGHT = 1000;
const MAX_LINES = 20;

export function LimitForm({ budget, done }: { budget: Budget; done: () => void }) {
  const [limit, setLimit] = useState(budget.limit?.amount ?? "");
  const dollars = typedDollars(limit);
  const committed = toMicro(budget.posted.amount) + toMicro(budget.held.amount);
  const problem = amountProblem(limit);
  return (
    <BudgetForm
      name="limit"
      label="New limit, dollars"
      value={limit}
      setValue={setLimit}
      problem={problem}
      save={async (reason) =>
        body(
          await api.PUT("/v1/budgets/{budget_id}", {
            params: { path: { budget_id: budget.id }, header: { "if-match": budget.etag } },
            body: { limit: dollars, reason },
          }),
        )
      }
      done={done}
    >
      {!problem && toMicro(dollars) < committed && (
        <p className="note warn">
          {formatDollars(committed)} is already spent or held. With this limit, running jobs save a checkpoint and pause, and the excess is
          shown as overdraft.
        </p>
      )}
    </BudgetForm>
  );
}

export function GrantForm({ budget, done }: { budget: Budget; done: () => void }) {
  const { amount, setAmount, dollars, problem, key } = useAmount();
  return (
    <BudgetForm
      name="grant"
      label="Dollars to add"
      value={amount}
      setValue={setAmount}
      problem={problem}
      save={async (reason) =>
        body(
          await api.POST("/v1/budgets/{budget_id}:grant", {
            params: { path: { budget_id: budget.id }, header: { "Idempotency-Key": key } },
            body: { amount: dollars, reason },
          }),
        )
      }
      done={done}
    >
      {!problem && budget.limit && (
        <p className="muted">The limit will be {formatDollars(toMicro(budget.limit.amount) + toMicro(dollars))}.</p>
      )}
    </BudgetForm>
  );
}

/** `others`: the budgets that may get dollars of this one. */
export function TransferForm({ budget, others, done }: { budget: Budget; others: readonly Budget[]; done: () => void }) {
  const { amount, setAmount, dollars, problem: noAmount, key } = useAmount();
  const missing = noAmount || !budget.left ? 0n : toMicro(dollars) - toMicro(budget.left.amount);
  const problem = missing > 0n ? `${formatDollars(missing)} more than is left: what is spent or held can't be moved.` : noAmount;
  const [to, setTo] = useState(others[0]?.id ?? "");
  const id = useId();
  return (
    <BudgetForm
      name="transfer"
      label="Dollars to move"
      value={amount}
      setValue={setAmount}
      problem={problem}
      save={async (reason) =>
        body(
          await api.POST("/v1/budgets/{budget_id}:transfer", {
            params: { path: { budget_id: budget.id }, header: { "Idempotency-Key": key } },
            body: { to, amount: dollars, reason },
          }),
        )
      }
      done={done}
    >
      <div className="field">
        <label htmlFor={`${id}-to`}>To</label>
        <select id={`${id}-to`} value={to} onChange={(event) => setTo(event.target.value)}>
          {others.map((one) => (
            <option key={one.id} value={one.id}>{one.owner}</option>
          ))}
        </select>
      </div>
      <p className="muted">{budget.left ? `${formatDollars(budget.left)} is neither spent nor held.` : ""}</p>
    </BudgetForm>
  );
}

/** An amount of dollars as it is entered, and the key that keeps a repeated request from moving it twice. */
function useAmount() {
  const [amount, setAmount] = useState("");
  const problem = amountProblem(amount, { example: "5.00", zero: false });
  const [key] = useState(newIdempotencyKey);
  return { amount, setAmount, dollars: typedDollars(amount), problem, key };
}

export function WeightForm({ budget, done }: { budget: Budget; done: () => void }) {
  const [weight, setWeight] = useState(String(budget.weight));
  const valid = /^\d{1,4}$/.test(weight.trim()) && Number(weight) >= 1 && Number(weight) <= MAX_WEIGHT;
  return (
    <BudgetForm
      name="weight"
      label="New weight"
      value={weight}
      setValue={setWeight}
      problem={valid ? "" : `Enter a whole number from 1 to ${MAX_WEIGHT}.`}
      save={async (reason) =>
        body(
          await api.PUT("/v1/budgets/{budget_id}/weight", {
            params: { path: { budget_id: budget.id } },
            body: { weight: Number(weight), reason },
          }),
        )
      }
      done={done}
    >
      <p className="muted">Weight 2 gets twice the dollars of weight 1, while both have jobs waiting.</p>
    </BudgetForm>
  );
}

export function GuaranteeForm({ budget, done }: { budget: Budget; done: () => void }) {
  const [rate, setRate] = useState(budget.guaranteed_rate?.amount ?? "");
  const dollars = typedDollars(rate);
  return (
    <BudgetForm
      name="guaranteed rate"
      label="Dollars an hour"
      value={rate}
      setValue={setRate}
      problem={amountProblem(rate, { example: "2.50 an hour; 0 guarantees nothing" })}
      save={async (reason) =>
        body(
          await api.PUT("/v1/budgets/{budget_id}/guaranteed-rate", {
            params: { path: { budget_id: budget.id } },
            body: { rate: dollars, reason },
          }),
        )
      }
      done={done}
    >
      <p className="muted">
        For a job that stays within it, a job of a team that uses more than it is guaranteed saves a checkpoint and goes back to the queue.
      </p>
    </BudgetForm>
  );
}

const CAP = /^\d{1,6}$/;

/** Jobs and GPUs at once; empty: no cap. */
export function ConcurrencyForm({ budget, done }: { budget: Budget; done: () => void }) {
  const id = useId();
  const [jobs, setJobs] = useState(budget.concurrency?.max_jobs?.toString() ?? "none");
  const [gpus, setGpus] = useState(budget.concurrency?.max_gpus?.toString() ?? "none");
  const caps = [jobs, gpus].map((one) => one.trim() || "none");
  const valid = caps.every((one) => one === "none" || CAP.test(one));
  const [maxJobs, maxGpus] = caps.map((one) => (one === "none" ? null : Number(one)));
  return (
    <BudgetForm
      name="concurrency"
      label="Running jobs at most"
      value={jobs}
      setValue={setJobs}
      problem={valid ? "" : "Enter whole numbers such as 4; or none."}
      save={async (reason) =>
        body(
          await api.PUT("/v1/budgets/{budget_id}/concurrency", {
            params: { path: { budget_id: budget.id } },
            body: { max_jobs: maxJobs ?? null, max_gpus: maxGpus ?? null, reason },
          }),
        )
      }
      done={done}
    >
      <div className="field">
        <label htmlFor={`${id}-gpus`}>GPUs at most</label>
        <input id={`${id}-gpus`} inputMode="numeric" autoComplete="off" value={gpus} onChange={(event) => setGpus(event.target.value)} />
      </div>
      <p className="muted">What runs goes on. Jobs beyond it wait until others end.</p>
    </BudgetForm>
  );
}

export function LinesForm({ budget, done }: { budget: Budget; done: () => void }) {
  const [lines, setLines] = useState(budget.soft_lines.map(({ percent }) => percent).join(", ") || "none");
  const parts = lines.trim() === "none" ? [] : lines.split(/[\s,%]+/).filter((part) => part !== "");
  const percents = parts.map(Number);
  const valid = percents.every((one) => Number.isInteger(one) && one >= 1 && one <= 100) && percents.length <= MAX_LINES;
  return (
    <BudgetForm
      name="soft lines"
      label="Percent of the limit"
      value={lines}
      setValue={setLines}
      problem={valid && (parts.length > 0 || lines.trim() === "none") ? "" : "Enter whole numbers from 1 to 100 such as 50, 80, 100; or none."}
      save={async (reason) =>
        body(
          await api.PUT("/v1/budgets/{budget_id}/soft-lines", {
            params: { path: { budget_id: budget.id } },
            body: { percents, reason },
          }),
        )
      }
      done={done}
    >
      <p className="muted">The team is told at each, once for each value of the limit. Nothing is refused there.</p>
    </BudgetForm>
  );
}

type Kind = "one_off" | "month" | "term";

export function PeriodForm({ budget, done }: { budget: Budget; done: () => void }) {
  const id = useId();
  const now = budget.period;
  const [kind, setKind] = useState<Kind>(now?.kind ?? "month");
  const [until, setUntil] = useState("");
  const [starts, setStarts] = useState("");
  const [zone, setZone] = useState(now?.time_zone ?? new Intl.DateTimeFormat().resolvedOptions().timeZone);
  const [over, setOver] = useState(now?.rollover === "unspent" ? (now.rollover_cap?.amount ?? "all") : "0");
  const dollars = typedDollars(over);
  const noAmount = dollars === "all" ? "" : amountProblem(over, { example: "20.00; all, or 0 for nothing" });
  const valid = noAmount === "";
  const carries = dollars === "all" || (valid && toMicro(dollars) > 0n);
  const missing = kind === "term" && until === "" ? "Enter the last day of the term." : "";
  return (
    <BudgetForm
      name="period"
      label="Carries over, dollars at most"
      value={over}
      setValue={setOver}
      problem={noAmount || missing}
      save={async (reason) =>
        body(
          await api.PUT("/v1/budgets/{budget_id}/period", {
            params: { path: { budget_id: budget.id } },
            body: {
              kind,
              time_zone: zone.trim(),
              until: kind === "term" ? until : null,
              starts: kind === "one_off" || starts === "" ? null : starts,
              rollover: carries ? "unspent" : "none",
              rollover_cap: carries && dollars !== "all" ? dollars : null,
              reason,
            },
          }),
        )
      }
      done={done}
    >
      <div className="row">
        <div className="field">
          <label htmlFor={`${id}-kind`}>Period</label>
          <select id={`${id}-kind`} value={kind} onChange={(event) => setKind(event.target.value as Kind)}>
            <option value="month">Each month</option>
            <option value="term">Until a day</option>
            <option value="one_off">One-off</option>
          </select>
        </div>
        {kind !== "one_off" && (
          <div className="field">
            <label htmlFor={`${id}-starts`}>First day, if not now</label>
            <input id={`${id}-starts`} type="date" value={starts} onChange={(event) => setStarts(event.target.value)} />
          </div>
        )}
        {kind === "term" && (
          <div className="field">
            <label htmlFor={`${id}-until`}>Last day</label>
            <input id={`${id}-until`} type="date" value={until} onChange={(event) => setUntil(event.target.value)} />
          </div>
        )}
        {kind !== "one_off" && (
          <div className="field grow">
            <label htmlFor={`${id}-zone`}>Time zone</label>
            <input id={`${id}-zone`} value={zone} maxLength={60} onChange={(event) => setZone(event.target.value)} />
          </div>
        )}
      </div>
      <p className="muted">
        Limit and use stay as they are. {kind === "month" ? "Each month begins with the limit that is set. " : ""}
        {kind === "one_off" ? "The limit has no end." : carries ? "What is unspent then carries over." : "What is unspent then expires."}
      </p>
    </BudgetForm>
  );
}

interface FormProps {
  name: string;
  label: string;
  value: string;
  setValue: (value: string) => void;
  /** Why the value can't be saved; empty: it can. */
  problem: string;
  save: (reason: string) => Promise<Budget>;
  done: () => void;
  children: ReactNode;
}

function BudgetForm({ name, label, value, setValue, problem, save, done, children }: FormProps) {
  const id = useId();
  const [reason, setReason] = useState("");
  const change = useMutation({
    mutationFn: () => save(reason),
    onSuccess: (changed) => {
      queries.setQueryData<Budget[]>(["budgets"], (old) => old?.map((one) => (one.id === changed.id ? changed : one)));
      done();
    },
    onError: () => void queries.invalidateQueries({ queryKey: ["budgets"] }),
  });
  const cancel = (event: KeyboardEvent) => event.key === "Escape" && done();
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => {
    field.current?.focus();
    field.current?.select();
  }, []);
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
          <label htmlFor={`${id}-value`}>{label}</label>
          <input ref={field} id={`${id}-value`} inputMode="decimal" autoComplete="off" onKeyDown={cancel} value={value} onChange={(event) => setValue(event.target.value)} />
        </div>
        <div className="field grow">
          <label htmlFor={`${id}-why`}>Reason (recorded)</label>
          <input id={`${id}-why`} onKeyDown={cancel} value={reason} maxLength={200} onChange={(event) => setReason(event.target.value)} />
        </div>
      </div>
      {children}
      <ProblemNote error={change.error} />
      <div className="row end">
        <button type="button" onClick={done}>Cancel</button>
        <ButtonWithReason type="submit" className="primary" reason={problem} wrong={value !== ""} busy={change.isPending}>
          {change.isPending ? "Saving…" : `Save ${name}`}
        </ButtonWithReason>
      </div>
    </form>
  );
}
