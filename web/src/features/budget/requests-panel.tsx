/** Requests for more dollars: asking, and for admins approving and denying. */
import { useMutation, useQuery } from "@tanstack/react-query";
import { type FormEvent, useId, useState } from "react";
import { api, body, newIdempotencyKey } from "../../api/client";
import { type BudgetRequest, budgetRequests, queries } from "../../api/queries";
import { formatDollars } from "../../lib/money";
import { Async } from "../../components/async";
import { useRights } from "../../lib/use-rights";
import { ButtonWithReason } from "../../components/button-with-reason";
import { amountProblem, typedDollars } from "../../lib/amount";
import { ProblemNote } from "../../components/problem-note";
import { Sentence } from "../../components/sentence";
import { Time } from "../../components/time";

const DECIDED_SHOWN = 5;

export function RequestsPanel() {
  const reading = useQuery(budgetRequests);
  const [asking, setAsking] = useState(false);
  const { ask } = useRights();
  return (
    <section className="panel" aria-label="Requests" data-requests>
      <header>
        <h2>Requests</h2>
        {ask && !asking && (
          <button type="button" className="small" onClick={() => setAsking(true)}>
            Ask for more
          </button>
        )}
      </header>
      {asking && <AskForm done={() => setAsking(false)} />}
      <Async reading={reading} rows={1}>{(all) => <Requests all={all} />}</Async>
    </section>
  );
}

function Requests({ all }: { all: readonly BudgetRequest[] }) {
  // Oldest first: one that comes moves no button of another from under the pointer.
  const open = all.filter(({ state }) => state === "open").reverse();
  const decided = all.filter(({ state }) => state !== "open").slice(0, DECIDED_SHOWN);
  return (
    <>
      {open.map((one) => (
        <OpenRequest key={one.id} request={one} />
      ))}
      {open.length === 0 && <p className="muted">No request is open.</p>}
      {decided.length > 0 && (
        <ul className="muted" aria-label="Decided requests">
          {decided.map((one) => (
            <li key={one.id}>
              {formatDollars(one.amount)} for {one.owner}: {one.state}
              {one.decided_by && ` by ${one.decided_by}`}
              {one.note && `, “${one.note}”`}
            </li>
          ))}
        </ul>
      )}
    </>
  );
}

function OpenRequest({ request }: { request: BudgetRequest }) {
  const decide = useMutation({
    mutationFn: async (verb: "approve" | "deny") => {
      const params = { path: { request_id: request.id } };
      const sent = { params, body: { note: "" } };
      return body(
        verb === "approve"
          ? await api.POST("/v1/budget-requests/{request_id}:approve", sent)
          : await api.POST("/v1/budget-requests/{request_id}:deny", sent),
      );
    },
    onSettled: () => void queries.invalidateQueries({ queryKey: budgetRequests.queryKey }),
  });
  return (
    <div className="note" data-request={request.id}>
      <p>
        <strong>
          {request.user} asks for {formatDollars(request.amount)} more for {request.owner}
        </strong>{" "}
        <span className="muted">
          <Time at={request.created_at} />
        </span>
      </p>
      <p>“{request.why}”</p>
      {request.effect && (
        <p className="muted">
          <Sentence text={request.effect.text} />
        </p>
      )}
      <ProblemNote error={decide.error} />
      {request.approvable && (
        <div className="row end">
          <button type="button" disabled={decide.isPending} onClick={() => decide.mutate("deny")}>Deny</button>
          <button type="button" className="primary" disabled={decide.isPending} onClick={() => decide.mutate("approve")}>
            Approve
          </button>
        </div>
      )}
    </div>
  );
}

function AskForm({ done }: { done: () => void }) {
  const id = useId();
  const [amount, setAmount] = useState("");
  const [why, setWhy] = useState("");
  const [key] = useState(newIdempotencyKey);
  const dollars = typedDollars(amount);
  const noAmount = amountProblem(amount, { example: "5.00", zero: false });
  const problem = noAmount || (why.trim() === "" ? "Say what it is for: the approver reads that." : "");
  const ask = useMutation({
    mutationFn: async () =>
      body(
        await api.POST("/v1/budget-requests", {
          params: { header: { "Idempotency-Key": key } },
          body: { amount: dollars, why: why.trim() },
        }),
      ),
    onSuccess: done,
    onSettled: () => void queries.invalidateQueries({ queryKey: budgetRequests.queryKey }),
  });
  function submit(event: FormEvent) {
    event.preventDefault();
    ask.mutate();
  }
  return (
    <form className="limit" onSubmit={submit}>
      <div className="row">
        <div className="field">
          <label htmlFor={`${id}-amount`}>Dollars more</label>
          <input id={`${id}-amount`} inputMode="decimal" autoComplete="off" value={amount} onChange={(event) => setAmount(event.target.value)} />
        </div>
        <div className="field grow">
          <label htmlFor={`${id}-why`}>What for</label>
          <input id={`${id}-why`} value={why} maxLength={500} onChange={(event) => setWhy(event.target.value)} />
        </div>
      </div>
      <ProblemNote error={ask.error} />
      <div className="row end">
        <button type="button" onClick={done}>Cancel</button>
        <ButtonWithReason type="submit" className="primary" reason={problem} wrong={noAmount !== "" && amount !== ""} busy={ask.isPending}>
          {ask.isPending ? "Asking…" : "Ask"}
        </ButtonWithReason>
      </div>
    </form>
  );
}
