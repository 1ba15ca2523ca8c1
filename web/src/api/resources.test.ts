import { beforeEach, expect, test } from "vitest";
import { type Budget, type Job, type JobPage, job as jobQuery, queries, receive } from "./resources";

beforeEach(() => queries.clear());

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
  list("state=queued", job("1", { state: "queued" }));
  receive([{ name: "job", data: job("2") }]);
  expect(stale("state=queued")).toBe(true);
  list("state=queued", job("1", { state: "queued" }));
  receive([{ name: "job", data: job("2", { attempt: 1 }) }]);
  expect(stale("state=queued")).toBe(false);
  receive([{ name: "job", data: job("2", { state: "queued" }) }]);
  expect(stale("state=queued")).toBe(true);
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
