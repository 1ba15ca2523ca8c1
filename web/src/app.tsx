/** The frame around every page: who is signed in, the budget left, whether the page is live. */
import { useQuery } from "@tanstack/react-query";
import { lazy, Suspense, useEffect, useSyncExternalStore } from "react";
import { api, setCsrf, onSignedOut } from "./api/client";
import { budgets, me, queries, receive, refetchAll } from "./api/queries";
import { formatDollars } from "./lib/money";
import { LoginPage } from "./features/login/login-page";
import { JobsPage } from "./features/jobs/jobs-page";
import { BudgetPage } from "./features/budget/budget-page";
import { tightestBudget } from "./lib/tightest-budget";
import { QueuePage } from "./features/queue/queue-page";
import { PeoplePage } from "./features/people/people-page";
import { ConnectionBar } from "./components/connection-bar";
import { Page } from "./components/page";
import { ProblemNote } from "./components/problem-note";
import { Skeleton } from "./components/skeleton";
import { navigate, Link, useLocation } from "./router";
import { stream } from "./live/stream";
import { forgetDrafts } from "./lib/drafts";
import { useRights } from "./lib/use-rights";
import { setTheme, THEMES, useTheme } from "./lib/theme";

const JobPage = lazy(() => import("./features/job/job-page"));
const NewJobPage = lazy(() => import("./features/new-job/new-job-page"));

onSignedOut(signIn);
stream.onRefused = () => void queries.invalidateQueries({ queryKey: me.queryKey });

export function App() {
  const address = useLocation();
  return address.pathname === "/login" ? <LoginPage /> : <SignedIn address={address} />;
}

function SignedIn({ address }: { address: URL }) {
  const who = useQuery(me);
  const signedIn = who.data !== undefined;
  useEffect(() => {
    const read = queries.getQueryData(me.queryKey);
    if (!signedIn || !read) return undefined;
    stream.startAt(read.cursor);
    return stream.subscribe({ topics: ["jobs", "budget"], receive, refetchAll });
  }, [signedIn]);
  if (!who.data) {
    return <main className="page">{who.error ? <ProblemNote error={who.error} retry={() => void who.refetch()} /> : <Skeleton />}</main>;
  }
  setCsrf(who.data.csrf);
  return (
    <>
      <a className="skip" href="#main">
        Skip to the page
      </a>
      <Header path={address.pathname} team={who.data.team} user={who.data.user} />
      <ConnectionBar />
      <Suspense fallback={<div className="page"><Skeleton rows={6} /></div>}>
        <Route address={address} />
      </Suspense>
    </>
  );
}

function Route({ address }: { address: URL }) {
  const path = address.pathname.replace(/\/+$/, "") || "/";
  const job = /^\/jobs\/([0-9a-f-]{36})$/i.exec(path);
  if (job) return <JobPage key={job[1]} id={job[1]!.toLowerCase()} />;
  if (path === "/" || path === "/jobs") return <JobsPage />;
  if (path === "/new") return <NewJobPage />;
  if (path === "/queue") return <QueuePage />;
  if (path === "/budget") return <BudgetPage />;
  if (path === "/people") return <PeoplePage />;
  return (
    <Page title="Page not found">
      <p>
        There is no page at <code>{path}</code>. <Link to="/">Go to the jobs</Link>.
      </p>
    </Page>
  );
}

function Header({ path, team, user }: { path: string; team: string; user: string }) {
  const { run } = useRights();
  const here = (to: string) => (to === path || (to === "/" && path.startsWith("/jobs")) ? ({ "aria-current": "page" } as const) : {});
  return (
    <header className="header">
      <Link to="/" className="brand" aria-label="Shoestring, all jobs">
        <img src="/icon.svg" alt="" width="22" height="22" />
        <span>Shoestring</span>
      </Link>
      <nav aria-label="Main">
        <Link to="/" {...here("/")}>Jobs</Link>
        <Link to="/queue" {...here("/queue")}>Queue</Link>
        <Link to="/budget" {...here("/budget")}>Budget</Link>
        {run && <Link to="/new" {...here("/new")}>New job</Link>}
      </nav>
      <div className="header-end">
        <BudgetLeft />
        <Connection />
        <button type="button" className="avatar" popoverTarget="menu" aria-label={`Menu of ${user}, team ${team}`}>
          {user.slice(0, 1).toUpperCase()}
        </button>
        <div id="menu" className="menu" popover="auto">
          <p>
            <strong>{user}</strong>
            <br />
            <span className="muted">team {team}</span>
          </p>
          <ThemeSwitch />
          <Link to="/people">People and keys</Link>
          <a href="/docs">API reference</a>
          <button type="button" onClick={() => void signOut()}>
            Sign out
          </button>
        </div>
      </div>
    </header>
  );
}

function BudgetLeft() {
  const { data } = useQuery(budgets);
  const user = useQuery(me).data?.user;
  const budget = data && tightestBudget(data, user);
  if (!budget?.left) return null;
  const over = budget.overdraft.amount !== "0.00";
  return (
    <Link to="/budget" className={`budget-left ${over ? "bad-text" : ""}`} title={`Left of the ${budget.kind} budget of ${budget.owner}`}>
      <span className="muted">{over ? "overdraft" : "left"}</span> <strong>{formatDollars(over ? budget.overdraft : budget.left)}</strong>
    </Link>
  );
}

const STATUS = { connecting: "connecting", live: "live", reconnecting: "reconnecting", asleep: "paused" } as const;

function Connection() {
  const status = useSyncExternalStore(stream.watch, () => stream.status);
  return (
    <span className={`connection ${status}`} role="status" title={`Live updates: ${STATUS[status]}`}>
      <span className="dot" aria-hidden="true" />
      <span className="label">{STATUS[status]}</span>
    </span>
  );
}

function ThemeSwitch() {
  const theme = useTheme();
  return (
    <div className="segments" role="group" aria-label="Theme">
      {THEMES.map((one) => (
        <button key={one} type="button" aria-pressed={theme === one} onClick={() => setTheme(one)}>
          {one}
        </button>
      ))}
    </div>
  );
}

/** To the sign-in page, which leads back here, and says so to whom had been signed in. */
function signIn(): void {
  const { pathname, search, hash } = window.location;
  if (pathname === "/login") return;
  const ended = queries.getQueryData(me.queryKey) !== undefined;
  queries.clear();
  navigate(`/login?${new URLSearchParams({ next: pathname + search + hash, ...(ended ? { ended: "1" } : {}) })}`, { replace: true });
}

async function signOut(): Promise<void> {
  try {
    await api.DELETE("/v1/session");
  } finally {
    forgetDrafts();
    queries.clear();
    navigate("/login");
  }
}
