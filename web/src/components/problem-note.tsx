import { Problem } from "../api/client";
import { Sentence } from "./sentence";

/** An error message with its hint and, if `retry` is given, a retry button. */
export function ProblemNote({ error, retry }: { error: unknown; retry?: () => void }) {
  if (!error) return null;
  const problem = error instanceof Problem ? error.document : null;
  return (
    <div className="note bad" role="alert">
      <strong>{problem?.title ?? "An error occurred"}</strong>
      <p>
        <Sentence text={problem?.detail ?? String((error as Error).message ?? error)} />
      </p>
      {problem?.hint && (
        <p className="muted">
          <Sentence text={problem.hint} />
        </p>
      )}
      {retry && (
        <button type="button" className="small" onClick={retry}>
          Try again
        </button>
      )}
    </div>
  );
}
