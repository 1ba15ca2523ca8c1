import { formatPercent } from "../lib/number";

/** A progress bar; `null` shows an indeterminate one. */
export function ProgressBar({ fraction, label, tone = "" }: { fraction: number | null; label: string; tone?: string }) {
  const known = fraction !== null;
  return (
    <span
      className={`bar ${tone} ${known ? "" : "indeterminate"}`}
      role="progressbar"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      {...(known ? { "aria-valuenow": Math.round(fraction * 100), "aria-valuetext": formatPercent(fraction) } : {})}
    >
      <span style={{ width: `${(fraction ?? 0) * 100}%` }} />
    </span>
  );
}
