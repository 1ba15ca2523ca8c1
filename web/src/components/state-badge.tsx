import type { Job } from "../api/queries";

const FAILURES = new Set(["user_code", "out_of_memory", "nan", "data", "image", "no_capacity", "quota", "account", "infrastructure"]);

/** The job's state as a word, a colour and a shape, so that none of them is needed to tell states apart. */
export function StateBadge({ job }: { job: Pick<Job, "state" | "end_reason"> }) {
  const [tone, label] = describeState(job);
  return (
    <span className={`badge ${tone}`} data-state={job.state}>
      <span className="dot" aria-hidden="true" />
      {label}
    </span>
  );
}

function describeState({ state, end_reason }: Pick<Job, "state" | "end_reason">): [tone: string, label: string] {
  if (state !== "ended") return [state, state === "awaiting_approval" ? "needs approval" : state];
  if (end_reason === "succeeded" || end_reason === "goal_reached") return ["good", "finished"];
  if (end_reason && FAILURES.has(end_reason)) return ["bad", "failed"];
  return ["neutral", "stopped"];
}
