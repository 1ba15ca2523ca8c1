import { useSyncExternalStore } from "react";
import type { Reading } from "../../components/async";
import type { JobFeed } from "../../live/job-feed";

/** The reading of a job's curves and log. What is in them changes without a new reading. */
export function useFeed(feed: JobFeed): Reading<JobFeed> {
  const loaded = useSyncExternalStore(feed.subscribe, () => feed.loaded);
  const error = useSyncExternalStore(feed.subscribe, () => feed.error);
  return { data: loaded ? feed : undefined, error, refetch: feed.refetch };
}
