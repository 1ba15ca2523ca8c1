import { useEffect, useState, useSyncExternalStore } from "react";
import { formatTime } from "../lib/time";
import { stream } from "../live/stream";

/** A restart of the service is over sooner, and needs no word. */
const LOST_AFTER_MS = 2_000;
const BACK_SHOWN_MS = 4_000;

/** Across the page while live updates are lost: since when, and for a moment that they are back. */
export function ConnectionBar() {
  const status = useSyncExternalStore(stream.watch, () => stream.status);
  const [lostAt, setLostAt] = useState<number | null>(null);
  useEffect(() => {
    if (status !== "reconnecting" && status !== "live") return undefined;
    const now = Date.now();
    const timer =
      status === "live"
        ? window.setTimeout(() => setLostAt(null), BACK_SHOWN_MS)
        : window.setTimeout(() => setLostAt((before) => before ?? now), LOST_AFTER_MS);
    return () => window.clearTimeout(timer);
  }, [status]);
  if (lostAt === null) return null;
  if (status === "live") return <p className="connection-bar back">Back: this page is live again.</p>;
  return <p className="connection-bar">No live updates since {formatTime(lostAt)}: what you see may be old. Trying again…</p>;
}
