/** What pages read, by key; the stream writes what it brings into the same places. */
import {
  type InfiniteData,
  keepPreviousData,
  QueryClient,
  type Query,
  type QueryFilters,
  type QueryKey,
  queryOptions,
  infiniteQueryOptions,
} from "@tanstack/react-query";
import { api, body, Problem, type Schemas } from "./client";
import type { Message } from "../live/stream";

export type Job = Schemas["Job"];
export type JobPage = Schemas["JobPage"];
export type Budget = Schemas["Budget"];
export type BudgetRequest = Schemas["BudgetRequest"];

export const queries = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 30_000,
      refetchOnWindowFocus: false,
      retry: (failures, error) => failures < 3 && (!(error instanceof Problem) || error.document.retryable || error.document.status === 0),
    },
  },
});

/** What the stream brought of each thing, and when. It is newer than the answer to what was asked before. */
class StreamCache<T extends { id: string }> {
  private things = new Map<string, { thing: T; at: number }>();

  take(things: Iterable<T>): void {
    const at = performance.now();
    for (const thing of things) this.things.set(thing.id, { thing, at });
  }

  /** `read` as the service answered it, or what came after it was asked at `asked`. */
  newer(read: T, asked: number): T {
    const brought = this.things.get(read.id);
    return brought && brought.at >= asked ? brought.thing : read;
  }
}

const jobCache = new StreamCache<Job>();
const budgetCache = new StreamCache<Budget>();

export const me = queryOptions({
  queryKey: ["me"],
  queryFn: async () => body(await api.GET("/v1/me")),
  staleTime: Number.POSITIVE_INFINITY,
});

export const jobPages = (filter: string) =>
  infiniteQueryOptions({
    queryKey: ["jobs", filter],
    initialPageParam: null as string | null,
    queryFn: async ({ pageParam, signal }) => {
      const asked = performance.now();
      const query = { filter, limit: 50, ...(pageParam ? { cursor: pageParam } : {}) };
      const page = body(await api.GET("/v1/jobs", { params: { query }, signal }));
      return { ...page, jobs: page.jobs.map((one) => jobCache.newer(one, asked)) };
    },
    getNextPageParam: (page) => page.next_cursor,
  });

export const job = (id: string) =>
  queryOptions({
    queryKey: ["job", id],
    queryFn: async ({ signal }) => {
      const asked = performance.now();
      return jobCache.newer(body(await api.GET("/v1/jobs/{job_id}", { params: { path: { job_id: id } }, signal })), asked);
    },
  });

export const attempts = (id: string) =>
  queryOptions({
    queryKey: ["job", id, "attempts"],
    queryFn: async ({ signal }) => body(await api.GET("/v1/jobs/{job_id}/attempts", { params: { path: { job_id: id } }, signal })),
  });

export const cost = (id: string) =>
  queryOptions({
    queryKey: ["job", id, "cost"],
    queryFn: async ({ signal }) => body(await api.GET("/v1/jobs/{job_id}/cost", { params: { path: { job_id: id } }, signal })),
  });

export const artifacts = (id: string) =>
  queryOptions({
    queryKey: ["job", id, "artifacts"],
    queryFn: async ({ signal }) => body(await api.GET("/v1/jobs/{job_id}/artifacts", { params: { path: { job_id: id } }, signal })),
  });

/** Every event of a job, oldest first. */
export const events = (id: string) =>
  queryOptions({
    queryKey: ["job", id, "events"],
    queryFn: async ({ signal }) => {
      const all: Schemas["Event"][] = [];
      let cursor: string | null = null;
      do {
        const query: { limit: number; cursor?: string } = { limit: 1000, ...(cursor ? { cursor } : {}) };
        const page: Schemas["EventPage"] = body(
          await api.GET("/v1/jobs/{job_id}/events", { params: { path: { job_id: id }, query }, signal }),
        );
        all.push(...page.events.filter((event) => event.kind !== "batch"));
        cursor = page.events.length > 0 && page.next_cursor !== cursor ? page.next_cursor : null;
      } while (cursor);
      return all;
    },
  });

export const budgets = queryOptions({
  queryKey: ["budgets"],
  queryFn: async ({ signal }) => {
    const asked = performance.now();
    const read = body(await api.GET("/v1/budgets", { signal })).budgets;
    return read.map((one) => budgetCache.newer(one, asked));
  },
});

/** Read again when the limit moves, and every 20 s: what is spent changes all the time. */
export const forecast = ({ id, limit, period }: Budget) =>
  queryOptions({
    queryKey: ["forecast", id, limit?.amount, period?.ends_at],
    queryFn: async ({ signal }) => body(await api.GET("/v1/budgets/{budget_id}/forecast", { params: { path: { budget_id: id } }, signal })),
    refetchInterval: 20_000,
  });

export const waste = queryOptions({
  queryKey: ["waste"],
  queryFn: async ({ signal }) => body(await api.GET("/v1/waste", { signal })),
  refetchInterval: 20_000,
});

/** Members, invitations and logins change by what others do, of which the stream tells nothing. */
const PEOPLE_MS = 3_000;

export const teams = queryOptions({
  queryKey: ["people", "teams"],
  queryFn: async ({ signal }) => body(await api.GET("/v1/teams", { signal })).teams,
});

export const members = queryOptions({
  queryKey: ["people", "members"],
  queryFn: async ({ signal }) => body(await api.GET("/v1/members", { signal })).members,
  refetchInterval: PEOPLE_MS,
});

export const invitations = queryOptions({
  queryKey: ["people", "invitations"],
  queryFn: async ({ signal }) => body(await api.GET("/v1/invitations", { signal })).invitations,
  refetchInterval: PEOPLE_MS,
});

export const keys = queryOptions({
  queryKey: ["people", "keys"],
  queryFn: async ({ signal }) => body(await api.GET("/v1/keys", { signal })).keys,
  refetchInterval: PEOPLE_MS,
});

export const logins = queryOptions({
  queryKey: ["people", "logins"],
  queryFn: async ({ signal }) => body(await api.GET("/v1/sessions", { signal })).logins,
  refetchInterval: PEOPLE_MS,
});

/** Requests for more dollars, newest first. */
export const budgetRequests = queryOptions({
  queryKey: ["budget-requests"],
  queryFn: async ({ signal }) => body(await api.GET("/v1/budget-requests", { signal })).requests,
});

/** What no budget pays for: what has run at providers without a job, and the machine that the service runs on. */
export const unbudgeted = queryOptions({
  queryKey: ["unbudgeted"],
  queryFn: async ({ signal }) => {
    const { leaked, hosting } = body(await api.GET("/v1/budgets", { signal }));
    return { leaked, hosting };
  },
});

/** What an invitation's link is for; read once, as taking it ends it. */
export const invitation = (code: string) =>
  queryOptions({
    queryKey: ["invitation", code],
    queryFn: async ({ signal }) => body(await api.POST("/v1/invitations:read", { body: { code }, signal })),
    staleTime: Number.POSITIVE_INFINITY,
  });

export const recipes = queryOptions({
  queryKey: ["recipes"],
  queryFn: async ({ signal }) => body(await api.GET("/v1/recipes", { signal })).recipes,
  staleTime: Number.POSITIVE_INFINITY,
});

/** One recipe, by its name with or without its version. */
export const recipe = (name: string) =>
  queryOptions({
    queryKey: ["recipes", name],
    queryFn: async ({ signal }) => body(await api.GET("/v1/recipes/{name}", { params: { path: { name } }, signal })),
    staleTime: Number.POSITIVE_INFINITY,
  });

/** Where a spec would run, and what that costs. While the next one is asked for, the last one stays. */
export const quote = (spec: string) =>
  queryOptions({
    queryKey: ["quote", spec],
    queryFn: async ({ signal }) => body(await api.POST("/v1/quotes", { body: { spec, machine_counts: [] }, signal })),
    placeholderData: keepPreviousData,
    retry: false,
    gcTime: 0,
  });

export const offers = queryOptions({
  queryKey: ["offers"],
  queryFn: async ({ signal }) => body(await api.GET("/v1/offers", { signal })).offers,
  staleTime: 300_000,
});

/** The stream tells what moves the team's own jobs; what other teams do is read again every few seconds. */
export const queue = queryOptions({
  queryKey: ["queue"],
  queryFn: async ({ signal }) => body(await api.GET("/v1/queue", { signal })),
  refetchInterval: 5_000,
});

/** Below the queue's key: it is read again when the queue is, so that a what-if is as live as what it departs from. */
export const whatIf = (request: Schemas["WhatIfRequest"]) =>
  queryOptions({
    queryKey: ["queue", "what-if", request],
    queryFn: async ({ signal }) => body(await api.POST("/v1/what-ifs", { body: request, signal })),
    refetchInterval: 5_000,
    gcTime: 0,
  });

/** How often the quotes of the team's earlier jobs held. */
export const calibration = queryOptions({
  queryKey: ["calibration"],
  queryFn: async ({ signal }) => body(await api.GET("/v1/quotes/calibration", { signal })),
});

/** Put a batch of stream messages where the pages read. */
export function receive(messages: readonly Message[]): void {
  const jobs = new Map<string, Job>();
  const budgets = new Map<string, Budget>();
  for (const message of messages) {
    if (message.name === "job") jobs.set(message.data.id, message.data);
    if (message.name === "budget") budgets.set(message.data.id, message.data);
  }
  // A changed limit changes what a request would leave for others.
  const asked = messages.some(({ name, data }) => name === "event" && (data.kind === "budget_request" || data.kind === "budget"));
  if (asked) void queries.invalidateQueries({ queryKey: budgetRequests.queryKey });
  jobCache.take(jobs.values());
  budgetCache.take(budgets.values());
  const moved = [...jobs.values()].some((one) => queries.getQueryData(job(one.id).queryKey)?.state !== one.state);
  if (moved || budgets.size > 0) void queries.invalidateQueries({ queryKey: queue.queryKey });
  for (const one of jobs.values()) queries.setQueryData(job(one.id).queryKey, one);
  if (jobs.size > 0) updateLists(jobs, moved);
  if (budgets.size > 0) {
    queries.setQueryData<Budget[]>(["budgets"], (old) => {
      if (!old) return old;
      const fresh = [...budgets.values()].filter((one) => !old.some(({ id }) => id === one.id) && one.kind !== "job");
      return [...old.map((one) => budgets.get(one.id) ?? one), ...fresh];
    });
  }
}

/**
 * Known jobs are replaced in place, and new ones head the unfiltered list. Only the service knows what a filter lets
 * through: filtered lists are read again, but not for each of a running job's points.
 */
function updateLists(jobs: ReadonlyMap<string, Job>, moved: boolean): void {
  for (const query of queries.getQueryCache().findAll({ queryKey: ["jobs"] })) {
    const update = () => updateList(query.queryKey, jobs);
    update();
    // An answer under way may be from before these jobs, and takes the place of the list that has them.
    if (query.state.fetchStatus === "fetching") query.promise?.then(update, () => {});
    if (query.queryKey[1] !== "" && moved) refetch({ queryKey: query.queryKey, exact: true });
  }
}

function updateList(key: QueryKey, jobs: ReadonlyMap<string, Job>): void {
  const old = queries.getQueryData<InfiniteData<JobPage, string | null>>(key);
  if (!old) return;
  const listed = new Set(old.pages.flatMap((page) => page.jobs.map(({ id }) => id)));
  const fresh = key[1] === "" ? [...jobs.values()].filter(({ id }) => !listed.has(id)) : [];
  queries.setQueryData(key, withJobs(old, jobs, fresh));
}

/** List pages with jobs replaced by newer readings; `fresh` ones are put in front, newest first. */
export function withJobs(
  list: InfiniteData<JobPage, string | null>,
  jobs: ReadonlyMap<string, Job>,
  fresh: readonly Job[],
): InfiniteData<JobPage, string | null> {
  const newest = list.pages[0]?.jobs[0]?.created_at ?? "";
  const heads = fresh.filter((one) => one.created_at >= newest).sort((a, b) => b.created_at.localeCompare(a.created_at));
  const pages = list.pages.map((page, i) => ({
    ...page,
    jobs: [...(i === 0 ? heads : []), ...page.jobs.map((one) => jobs.get(one.id) ?? one)],
  }));
  return { ...list, pages };
}

/** After a gap in the stream. */
export function refetchAll(): void {
  refetch({ predicate: ({ queryKey }) => queryKey[0] !== "me" && queryKey[0] !== "recipes" });
}

/**
 * Read these again if they are on show. A first answer under way may be too old: it is waited for, and asked for again.
 * So is the next page of a list, which the reader has asked for.
 */
export function refetch(which: QueryFilters): void {
  const awaited = ({ state }: Query) => state.fetchStatus === "fetching" && (state.data === undefined || Boolean(state.fetchMeta?.fetchMore));
  for (const query of queries.getQueryCache().findAll({ ...which, fetchStatus: "fetching" })) {
    if (!awaited(query)) continue; // a second reading takes the place of the one under way
    const again = () => void queries.invalidateQueries({ queryKey: query.queryKey, exact: true });
    query.promise?.then(again, again);
  }
  void queries.invalidateQueries({ ...which, predicate: (query) => !awaited(query) && (which.predicate?.(query) ?? true) });
}
