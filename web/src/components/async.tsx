import type { ReactNode } from "react";
import { ProblemNote } from "./problem-note";
import { Skeleton } from "./skeleton";

/** Something that is read from the service: a query, a query list, or a part of a job's feed. */
export interface Reading<T> {
  data: T | undefined;
  error: unknown;
  refetch: () => unknown;
}

/**
 * Shows what was read: placeholders until it is there, and an error, with a retry, above what was read before it. So
 * "there is nothing" is only ever said of an answer.
 */
export function Async<T>({ reading, rows, children }: { reading: Reading<T>; rows?: number; children: (data: T) => ReactNode }) {
  const { data, error, refetch } = reading;
  return (
    <>
      <ProblemNote error={error} retry={() => void refetch()} />
      {data !== undefined ? children(data) : !error && <Skeleton rows={rows} />}
    </>
  );
}
