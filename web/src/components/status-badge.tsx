import type { Job } from "../api/queries";

/** The job's status as a word, a colour and a shape, so that none of them is needed to tell statuses apart. */
export function StatusBadge({ job: { status } }: { job: Pick<Job, "status"> }) {
  return (
    <span className={`badge ${status}`} data-status={status}>
      <span className="dot" aria-hidden="true" />
      {status.replaceAll("_", " ")}
    </span>
  );
}
