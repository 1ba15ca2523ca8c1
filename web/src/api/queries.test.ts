import { InfiniteQueryObserver, QueryObserver } from "@tanstack/react-query";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { api } from "./client";
import { type Budget, type Job, type JobPage, job as jobQuery, jobPages, queries, receive, refetchAll } from "./queries";

beforeEach(() => queries.clear());
afterEach(() => vi.restoreAllMocks());

const PATIENCE_MS = 30_000; // a busy machine is slow, not broken
vi.setConfig({ testTimeout: 2 * PATIENCE_MS });
const until = (check: () => void) => vi.waitFor(check, PATIENCE_MS);

/** The service, whose answers the test gives one by one. */
function service(): ((data: unknown) => void)[] {
  const answers: ((data: unknown) => void)[] = [];
  vi.spyOn(api, "GET").mockImplementation((() =>
    new Promise((resolve) => answers.push((data) => resolve({ data, response: new Response() })))) as never);
  return answers;
}

function job(id: string, changes: Partial<Job> = {}): Job {
  return { id, state: "running", created_at: `2026-11-21T10:00:0${id}Z`, ...changes } as Job;
}

function list(filter: string, ...jobs: Job[]): void {
  queries.setQueryData(["jobs", filter], { pages: [{ jobs, next_cursor: null }], pageParams: [null] });
}

function listed(filter: string): Job[] {
  const data = queries.getQueryData(["jobs", filter]) as { pages: JobPage[] };
  return data.pages.flatMap((page) => page.jobs);
}

const stale = (filter: string) => queries.getQueryState(["jobs", filter])!.isInvalidated;

test("a job is replaced where it stands, and on its own page", () => {
  list("", job("2"), job("1"));
  receive([{ name: "job", data: job("1", { state: "ended" }) }]);
  expect(listed("").map(({ id, state }) => [id, state])).toEqual([["2", "running"], ["1", "ended"]]);
  expect(queries.getQueryData(jobQuery("1").queryKey)?.state).toBe("ended");
});

test("a new job heads the list; an old one that isn't loaded yet doesn't", () => {
  list("", job("5"));
  receive([{ name: "job", data: job("1") }, { name: "job", data: job("7") }, { name: "job", data: job("6") }]);
  expect(listed("").map(({ id }) => id)).toEqual(["7", "6", "5"]);
});

test("of several readings of a job in one frame the last one stands", () => {
  list("", job("1"));
  receive([{ name: "job", data: job("1", { state: "stopping" }) }, { name: "job", data: job("1", { state: "ended" }) }]);
  expect(listed("")[0]!.state).toBe("ended");
});

test("a filtered list is read again when a job moves, not with each of its points", () => {
  list("status=queued", job("1", { state: "queued" }));
  receive([{ name: "job", data: job("2") }]);
  expect(stale("status=queued")).toBe(true);
  list("status=queued", job("1", { state: "queued" }));
  receive([{ name: "job", data: job("2", { attempt: 1 }) }]);
  expect(stale("status=queued")).toBe(false);
  receive([{ name: "job", data: job("2", { state: "queued" }) }]);
  expect(stale("status=queued")).toBe(true);
});

test("budgets change in place, and jobs' own accounts stay out of the list", () => {
  const budget = (id: string, kind: string, etag: string) => ({ id, kind, etag }) as Budget;
  queries.setQueryData(["budgets"], [budget("a", "team", "1")]);
  receive([
    { name: "budget", data: budget("a", "team", "2") },
    { name: "budget", data: budget("b", "member", "1") },
    { name: "budget", data: budget("c", "job", "1") },
  ]);
  expect(queries.getQueryData<Budget[]>(["budgets"])!.map(({ id, etag }) => [id, etag])).toEqual([["a", "2"], ["b", "1"]]);
});

test("an answer that was under way doesn't undo what the stream brought meanwhile", async () => {
  const answers = service();
  const reading = queries.fetchQuery(jobQuery("1"));
  const listing = queries.fetchInfiniteQuery(jobPages(""));
  await until(() => expect(answers).toHaveLength(2));
  receive([{ name: "job", data: job("1", { state: "ended" }) }]);
  answers[0]!(job("1"));
  answers[1]!({ jobs: [job("2"), job("1")], next_cursor: null });
  await Promise.all([reading, listing]);
  expect(queries.getQueryData(jobQuery("1").queryKey)?.state).toBe("ended");
  expect(listed("").map(({ id, state }) => [id, state])).toEqual([["2", "running"], ["1", "ended"]]);
  const later = queries.fetchQuery({ ...jobQuery("1"), staleTime: 0 });
  await until(() => expect(answers).toHaveLength(3));
  answers[2]!(job("1", { state: "queued" }));
  await later;
  expect(queries.getQueryData(jobQuery("1").queryKey)?.state).toBe("queued");
});

test("a first answer that was under way when the stream began is asked for again", async () => {
  const answers = service();
  const close = new QueryObserver(queries, jobQuery("9")).subscribe(() => {});
  await until(() => expect(answers).toHaveLength(1));
  refetchAll();
  answers[0]!(job("9"));
  await until(() => expect(answers).toHaveLength(2));
  answers[1]!(job("9", { state: "ended" }));
  await until(() => expect(queries.getQueryData(jobQuery("9").queryKey)?.state).toBe("ended"));
  close();
});

test("a job that ends while more of the list is loaded stays ended, and a new one stays listed", async () => {
  const answers = service();
  const list = new InfiniteQueryObserver(queries, jobPages(""));
  const close = list.subscribe(() => {});
  await until(() => expect(answers).toHaveLength(1));
  answers[0]!({ jobs: [job("3"), job("2")], next_cursor: "2" });
  await until(() => expect(list.getCurrentResult().hasNextPage).toBe(true));
  void list.fetchNextPage();
  await until(() => expect(answers).toHaveLength(2));
  receive([{ name: "job", data: job("2", { state: "ended" }) }, { name: "job", data: job("4") }]);
  answers[1]!({ jobs: [job("1")], next_cursor: null });
  await until(() => expect(list.getCurrentResult().isFetching).toBe(false));
  await until(() => expect(listed("").map(({ id, state }) => [id, state])).toEqual([["4", "running"], ["3", "running"], ["2", "ended"], ["1", "running"]]));
  close();
});

test("a next page that the reader has asked for arrives, and the list is read again after it", async () => {
  const answers = service();
  const list = new InfiniteQueryObserver(queries, jobPages("status=queued"));
  const close = list.subscribe(() => {});
  await until(() => expect(answers).toHaveLength(1));
  answers[0]!({ jobs: [job("3", { state: "queued" })], next_cursor: "3" });
  await until(() => expect(list.getCurrentResult().hasNextPage).toBe(true));
  void list.fetchNextPage();
  await until(() => expect(answers).toHaveLength(2));
  receive([{ name: "job", data: job("3", { state: "running" }) }]);
  answers[1]!({ jobs: [job("1", { state: "queued" })], next_cursor: null });
  await until(() => expect(listed("status=queued").map(({ id }) => id)).toEqual(["3", "1"]));
  await until(() => expect(answers).toHaveLength(3));
  close();
});
