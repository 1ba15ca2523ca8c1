/** What is left of a budget over its period, and the cone of what may be left at its end. */
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { type Budget, forecast as forecastOf } from "../../api/queries";
import type { Schemas } from "../../api/client";
import { formatDollars, toMicro } from "../../lib/money";
import { Async } from "../../components/async";

const [WIDTH, HEIGHT] = [600, 120];

type Forecast = Schemas["BudgetForecast"];

export function BurnDown({ budget }: { budget: Budget }) {
  const reading = useQuery({ ...forecastOf(budget), placeholderData: keepPreviousData });
  return <Async reading={reading} rows={2}>{(forecast) => forecast.limit && <Left forecast={forecast} limit={forecast.limit} />}</Async>;
}

function Left({ forecast, limit }: { forecast: Forecast; limit: Schemas["Money"] }) {
  const { at_end, pace, even_pace } = forecast;
  return (
    <figure className="burn-down" data-burn-down>
      <p className="of-axis">Left of {formatDollars(limit)}</p>
      <Chart forecast={forecast} limit={toMicro(limit.amount)} />
      <p className="of-axis">
        <time dateTime={forecast.starts_at}>{formatDay(forecast.starts_at)}</time>
        <time dateTime={forecast.ends_at}>{formatDay(forecast.ends_at)}</time>
      </p>
      <figcaption>
        {at_end && pace && even_pace ? (
          <>
            At {formatDollars(pace)} a day, {formatDollars(at_end.expected)} of {formatDollars(limit)} would be spent by{" "}
            {formatDay(forecast.ends_at)}, in four of five cases between {formatDollars(at_end.low)} and {formatDollars(at_end.high)}.{" "}
            {formatDollars(even_pace)} a day would use it up.
          </>
        ) : (
          "Too little was spent so far for a forecast."
        )}
      </figcaption>
      {forecast.crosses_limit && forecast.exhausted_at && (
        <p className="note warn" data-forecast-alert>
          {`This limit won't last: at this pace it is spent by ${formatDay(forecast.exhausted_at)}.`}
        </p>
      )}
    </figure>
  );
}

/** In the reader's own zone, to the minute. */
function formatDay(at: string): string {
  return new Date(at).toLocaleString(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
}

function Chart({ forecast, limit }: { forecast: Forecast; limit: bigint }) {
  const [start, end] = [Date.parse(forecast.starts_at), Date.parse(forecast.ends_at)];
  const x = (at: string) => (((Date.parse(at) - start) / Math.max(1, end - start)) * WIDTH).toFixed(1);
  const y = (spent: Schemas["Money"]) => {
    const share = limit > 0n ? Number(toMicro(spent.amount)) / Number(limit) : 1;
    return (share * HEIGHT).toFixed(1); // what is beyond the limit is below the chart, and cut off
  };
  const now = forecast.points.at(-1);
  if (!now) return null;
  const here = `${x(now.at)},${y(now.spent)}`;
  const label = `Left of ${formatDollars(forecast.limit!)}: ${formatDollars(limit - toMicro(forecast.spent.amount))} now`;
  const committed = toMicro(forecast.committed.amount);
  return (
    <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={label}>
      {forecast.at_end && (
        <>
          <polygon
            className="cone"
            points={`${here} ${x(forecast.ends_at)},${y(forecast.at_end.low)} ${x(forecast.ends_at)},${y(forecast.at_end.high)}`}
          />
          <line className="expected" x1={x(now.at)} y1={y(now.spent)} x2={x(forecast.ends_at)} y2={y(forecast.at_end.expected)} />
        </>
      )}
      <polyline className="left" points={forecast.points.map((point) => `${x(point.at)},${y(point.spent)}`).join(" ")} />
      {committed > 0n && (
        <line
          className="committed"
          x1={x(now.at)}
          x2={x(now.at)}
          y1={y(now.spent)}
          y2={((Number(toMicro(now.spent.amount) + committed) / Math.max(1, Number(limit))) * HEIGHT).toFixed(1)}
        />
      )}
    </svg>
  );
}
