import { unbroken } from "./unbroken";

/** "1h 02m", "3m 20s", "4.2 s": as precise as somebody who waits needs it. */
export function formatDuration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (seconds < 10) return unbroken(`${Math.max(0, seconds).toFixed(1)} s`);
  if (whole < 60) return unbroken(`${whole} s`);
  if (whole < 3600) return unbroken(`${Math.floor(whole / 60)}m ${two(whole % 60)}s`);
  if (whole < 86_400) return unbroken(`${Math.floor(whole / 3600)}h ${two(Math.floor((whole % 3600) / 60))}m`);
  return unbroken(`${Math.floor(whole / 86_400)}d ${two(Math.floor((whole % 86_400) / 3600))}h`);
}

/** "just now", "4 min ago", "yesterday 14:02", "3 Nov 14:02" in the reader's own zone. */
export function formatAgo(at: string | null | undefined, now: number = Date.now()): string {
  if (!at) return "–";
  const seconds = (now - Date.parse(at)) / 1000;
  if (seconds < 10) return "just now";
  if (seconds < 60) return unbroken(`${Math.floor(seconds)} s ago`);
  if (seconds < 3600) return unbroken(`${Math.floor(seconds / 60)} min ago`);
  if (seconds < 86_400) return unbroken(`${Math.floor(seconds / 3600)} h ago`);
  return new Date(at).toLocaleString(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
}

/** "14:02:31", with the date in front unless it is today, in the reader's own zone. */
export function formatTime(at: string | number | null | undefined, now: number = Date.now()): string {
  if (at === null || at === undefined) return "–";
  const [moment, today] = [new Date(at), new Date(now)];
  const date = moment.toLocaleDateString(undefined, {
    day: "numeric",
    month: "short",
    ...(moment.getFullYear() === today.getFullYear() ? {} : { year: "numeric" }),
  });
  const time = moment.toLocaleTimeString(undefined, { hourCycle: "h23", hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return moment.toDateString() === today.toDateString() ? time : `${date}, ${time}`;
}

/** Date, time and zone. */
export function formatFullTime(at: string | number): string {
  return new Date(at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long", hourCycle: "h23" });
}

/** The reader's zone, such as "CET" or "GMT+1": for headings of columns of times. */
export function zoneName(): string {
  const parts = new Intl.DateTimeFormat(undefined, { timeZoneName: "short" }).formatToParts();
  return parts.find(({ type }) => type === "timeZoneName")?.value ?? "local time";
}

export function secondsBetween(from: string | null | undefined, to: string | null | undefined, now: number = Date.now()): number | null {
  return from ? ((to ? Date.parse(to) : now) - Date.parse(from)) / 1000 : null;
}

function two(n: number): string {
  return n.toString().padStart(2, "0");
}
