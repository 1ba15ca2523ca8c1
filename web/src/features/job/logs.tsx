import { memo, type UIEvent, useLayoutEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { type JobFeed, LONGEST_TAIL } from "../../live/job-feed";
import { key, type LogLine, pieces, plain } from "../../lib/lines";
import { count } from "../../lib/number";
import { Panel } from "../../components/parts";

/** Choices of whose lines are shown; the others are single ranks. */
const TRAINING = "training";
const EVERYTHING = "everything";
const ROW_PX = 18;
const BEYOND_ROWS = 20;
const NEAR_END_PX = 24;

/** The log as it comes. Rows have one height, so that only those in sight are made. */
export function LogsPanel({ feed, over }: { feed: JobFeed; over: boolean }) {
  const log = useSyncExternalStore(feed.subscribe, () => feed.log);
  const [who, setWho] = useState(TRAINING);
  const [search, setSearch] = useState("");
  const [follow, setFollow] = useState(true);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(400);
  const [busy, setBusy] = useState(false);
  const box = useRef<HTMLDivElement>(null);

  const streams = useMemo(() => [...new Set(log.lines.map(streamOf))].sort(), [log]);
  const lines = useMemo(() => {
    const wanted = search.trim().toLowerCase();
    return log.lines.filter(
      (line) => (who === EVERYTHING || (who === TRAINING ? line.rank >= 0 : streamOf(line) === who)) && (wanted === "" || plain(line.text).toLowerCase().includes(wanted)),
    );
  }, [log, who, search]);

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

  async function loadEarlier() {
    setBusy(true);
    setFollow(false);
    try {
      await feed.loadEarlierLines();
    } finally {
      setBusy(false);
    }
  }

  const first = Math.max(0, Math.floor(top / ROW_PX) - BEYOND_ROWS);
  const last = Math.min(lines.length, Math.ceil((top + height) / ROW_PX) + BEYOND_ROWS);
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
          <select aria-label="Rank" value={who} onChange={(event) => setWho(event.target.value)}>
            <option value={TRAINING}>Training, all ranks</option>
            <option value={EVERYTHING}>Everything</option>
            {streams.map((one) => (
              <option key={one} value={one}>
                {one}
              </option>
            ))}
          </select>
          <input type="search" aria-label="Search in the lines shown" placeholder="Search" value={search} onChange={(event) => setSearch(event.target.value)} />
          <label className="check">
            <input type="checkbox" checked={follow} onChange={(event) => setFollow(event.target.checked)} />
            Follow
          </label>
        </div>
      }
    >
      <div ref={box} className="log" onScroll={scrolled} tabIndex={0} role="log" aria-label="Log lines" aria-live="off">
        {lines.length === 0 ? (
          <p className="dim">
            {search !== "" ? "No line matches." : over ? "Nothing was logged here. " : "Lines appear here as they are written. "}
            {search === "" && who === TRAINING && log.lines.length > 0 && (
              <button type="button" className="link" onClick={() => setWho(EVERYTHING)}>
                Show the agents’ {count(log.lines.length)} lines
              </button>
            )}
          </p>
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
      <p className="foot dim">
        {count(lines.length)} {lines.length === log.lines.length ? "lines" : `of ${count(log.lines.length)} lines`}
        {feed.truncated && ". The job wrote more than its quota; the rest was not kept"}
        {" · "}
        <button type="button" className="link" onClick={() => void saveLog(feed.id)}>
          Save as a file
        </button>
      </p>
    </Panel>
  );
}

const Row = memo(function Row({ line }: { line: LogLine }) {
  return (
    <div className="log-row">
      <span className="who">{shortName(line)}</span>
      {pieces(line.text).map((piece, i) => (
        <span key={i} className={piece.className}>
          {piece.text}
        </span>
      ))}
    </div>
  );
});

async function saveLog(id: string): Promise<void> {
  const answer = await fetch(`/v1/jobs/${id}/logs?tail=${LONGEST_TAIL}`, { headers: { Accept: "text/plain" } });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = `${id}.log`;
  link.click();
  URL.revokeObjectURL(link.href);
}

function streamOf(line: LogLine): string {
  return line.rank < 0 ? `machine ${line.slot}, agent` : `machine ${line.slot}, rank ${line.rank}`;
}

function shortName(line: LogLine): string {
  return line.rank < 0 ? `m${line.slot} agent` : `m${line.slot} r${line.rank}`;
}
