/** The words for codes of the API. */

/** The characters by which a job is shown, as the command line shows and takes them. */
export function shortId(job: string): string {
  return job.slice(-8);
}

/** Why a machine terminated. */
export const MACHINE_END_CAUSES: Record<string, string> = {
  requested: "by Shoestring",
  exited: "exited normally",
  crashed: "crashed",
  capacity: "no capacity",
};

const MACHINE_STATES: Record<string, string> = {
  never_launched: "never launched",
};

export function machineStateLabel(state: string): string {
  return MACHINE_STATES[state] ?? state;
}

/** Why an attempt ended. */
const ATTEMPT_REASONS: Record<string, string> = {
  stop: "stopped",
  eviction: "made room",
  data: "data error",
  nan: "NaN/Inf",
  capacity: "no capacity",
};

const TRANSFER_KINDS: Record<string, string> = { usage: "usage charge" };

/** The kind of a ledger entry. */
export function transferKindLabel(kind: string): string {
  return TRANSFER_KINDS[kind] ?? kind;
}

export function attemptReasonLabel(reason: string): string {
  return ATTEMPT_REASONS[reason] ?? reason.replaceAll("_", " ");
}

/** The first line of what is said about a job, for lists: a traceback may follow it. */
export function headline(job: { status_text: string }): string {
  return job.status_text.split("\n", 1)[0] ?? "";
}
