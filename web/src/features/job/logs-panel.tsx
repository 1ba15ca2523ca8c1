import { memo, type ReactNode, type UIEvent, useLayoutEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { type JobFeed, MAX_TAIL } from "../../live/job-feed";
import { key, type LogLine, parseAnsi, stripAnsi } from "../../lib/log-lines";
import { counted, formatCount } from "../../lib/number";
import { Async } from "../../components/async";
import { Panel } from "../../components/panel";
import { useFeed } from "./use-feed";

/** Sources of lines that can be selected, besides single ranks. */
const TRAINING = "training";
const ALL = "all";
const ROW_PX = 18;
const OVERSCAN_ROWS = 20;
const NEAR_END_PX = 24;

/** The live log. */
export function LogsPanel({ feed, ended }: { feed: JobFeed; ended: boolean }) {
  const log = useSyncExternalStore(feed.subscribe, () => feed.log);
  const reading = useFeed(feed);
  const [source, setSource] = useState(TRAINING);
  const [search, setSearch] = useState("");
  const [follow, setFollow] = useState(true);
  const [busy, setBusy] = useState(false);

  const sources = useMemo(() => [...new Set(log.lines.map(sourceOf))].sort(), [log]);
  const lines = useMemo(() => {
    const wanted = search.trim().toLowerCase();
    return log.lines.filter(
      (line) => (source === ALL || (source === TRAINING ? line.rank >= 0 : sourceOf(line) === source)) && (wanted === "" || stripAnsi(line.text).toLowerCase().includes(wanted)),
    );
  }, [log, source, search]);

  async function loadEarlier() {
    setBusy(true);
    setFollow(false);
    try {
      await feed.loadEarlierLines();
    } finally {
      setBusy(false);
    }
  }

  const nothing = search !== "" ? "No lines match." : ended ? "No log lines. " : "Log lines appear here as they are written. ";
  return (
    <Panel
      title="Log"
      className="logs"
      aside={
        <div className="tools">
          {feed.mayHaveEarlierLines && (
            <button type="button" className="small quiet" disabled={busy} onClick={() => void loadEarlier()}>
              {busy ? "Loading…" : "Load earlier"}
            </button>
          )}
          <select aria-label="Rank" value={source} onChange={(event) => setSource(event.target.value)}>
            <option value={TRAINING}>Training, all ranks</option>
            <option value={ALL}>All, with agents</option>
            {sources.map((one) => (
              <option key={one} value={one}>
                {one}
              </option>
            ))}
          </select>
          <input type="search" aria-label="Search the log" placeholder="Search" value={search} onChange={(event) => setSearch(event.target.value)} />
          <label className="check">
            <input type="checkbox" checked={follow} onChange={(event) => setFollow(event.target.checked)} />
            Follow
          </label>
        </div>
      }
    >
      <Async reading={log.lines.length > 0 ? { ...reading, data: feed } : reading} rows={12}>
        {() => (
          <>
            <Lines lines={lines} follow={follow} setFollow={setFollow}>
              {nothing}
              {search === "" && source === TRAINING && log.lines.length > 0 && (
                <button type="button" className="link" onClick={() => setSource(ALL)}>
                  Show {counted(log.lines.length, "line")} of the agents
                </button>
              )}
            </Lines>
            <p className="footnote muted">
              {lines.length === log.lines.length ? "" : `${formatCount(lines.length)} of `}
              {counted(log.lines.length, "line")}
              {feed.truncated && ". The job exceeded its log quota; later lines were dropped"}
              {" · "}
              <button type="button" className="link" onClick={() => void downloadLog(feed.id)}>
                Download
              </button>
            </p>
          </>
        )}
      </Async>
    </Panel>
  );
}

/** Rows have a fixed height, so that only the visible ones are rendered. `children` are shown if there are none. */
function Lines({ lines, follow, setFollow, children }: {
  lines: readonly LogLine[];
  follow: boolean;
  setFollow: (follow: boolean) => void;
  children: ReactNode;
}) {
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(400);
  const box = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const element = box.current;
    if (element && follow) element.scrollTop = element.scrollHeight;
  }, [lines, follow]);
  useLayoutEffect(() => {
    const element = box.current!;
    const resized = new ResizeObserver(() => setHeight(element.clientHeight));
    resized.observe(element);
    return () => resized.disconnect();
  }, []);

  function scrolled(event: UIEvent<HTMLDivElement>) {
    const { scrollTop, scrollHeight, clientHeight } = event.currentTarget;
    setTop(scrollTop);
    const atEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    if (atEnd !== follow) setFollow(atEnd);
  }

  const first = Math.max(0, Math.floor(top / ROW_PX) - OVERSCAN_ROWS);
  const last = Math.min(lines.length, Math.ceil((top + height) / ROW_PX) + OVERSCAN_ROWS);
  return (
    <div ref={box} className="log" onScroll={scrolled} tabIndex={0} role="log" aria-label="Log lines" aria-live="off">
      {lines.length === 0 ? (
        <p className="muted">{children}</p>
      ) : (
        <div style={{ height: lines.length * ROW_PX }}>
          <div style={{ transform: `translateY(${first * ROW_PX}px)` }}>
            {lines.slice(first, last).map((line) => (
              <Row key={key(line)} line={line} />
            ))}
          </div>
        </div>
      )}
    </div>
  );
}

const Row = memo(function Row({ line }: { line: LogLine }) {
  return (
    <div className="log-row">
      <span className="source">{shortSource(line)}</span>
      {parseAnsi(line.text).map((piece, i) => (
        <span key={i} className={piece.className}>
          {piece.text}
        </span>
      ))}
    </div>
  );
});

async function downloadLog(id: string): Promise<void> {
  const answer = await fetch(`/v1/jobs/${id}/logs?tail=${MAX_TAIL}`, { headers: { Accept: "text/plain" } });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = `${id}.log`;
  link.click();
  URL.revokeObjectURL(link.href);
}

function sourceOf(line: LogLine): string {
  return line.rank < 0 ? `machine ${line.slot}, agent` : `machine ${line.slot}, rank ${line.rank}`;
}

function shortSource(line: LogLine): string {
  return line.rank < 0 ? `m${line.slot} agent` : `m${line.slot} r${line.rank}`;
}
