import { formatFullTime, formatTime } from "../lib/time";

/** A moment in the reader's zone; the title has the date and the zone too. */
export function Time({ at, text }: { at: string | null | undefined; text?: string }) {
  if (!at) return <>–</>;
  return (
    <time dateTime={at} title={formatFullTime(at)}>
      {text ?? formatTime(at)}
    </time>
  );
}
