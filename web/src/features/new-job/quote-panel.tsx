import { useQuery } from "@tanstack/react-query";
import { calibration, quote } from "../../api/queries";
import type { Schemas } from "../../api/client";
import { TableScroll } from "../../components/table-scroll";
import { formatDollars } from "../../lib/money";
import { formatPercent } from "../../lib/number";
import { formatAgo } from "../../lib/time";
import { useDebounced } from "../../lib/use-debounced";
import { Sentence } from "../../components/sentence";
import { basisText, budgetText, costText, gpuText, interruptionText, machinesText, notPossibleText, placeText, quoteErrorText, timeText } from "./quote-text";

type QuotedOffer = Schemas["QuotedOffer"];

/** Where the job of this spec would run, how long it takes and what it costs; asked again when the text has settled. */
export function QuotePanel({ text }: { text: string }) {
  const settled = useDebounced(text, 500);
  const { data, error, isPending, isPlaceholderData } = useQuery(quote(settled));
  const busy = isPending || isPlaceholderData || settled !== text;
  return (
    <div className="quote">
      <div role="status" aria-label="Quote" aria-busy={busy}>
        {error ? <p className="muted">{quoteErrorText(error)}</p> : data ? <QuoteText data={data} /> : <p className="muted">Getting a quote…</p>}
      </div>
      {data && <Alternatives data={data} />}
      {data && <Calibration />}
    </div>
  );
}

function QuoteText({ data }: { data: Schemas["Quote"] }) {
  return (
    <>
      <p><Sentence text={data.summary.text} /></p>
      {data.offers[0] && <BestOffer best={data.offers[0]} />}
      {data.no_offer && <p><Sentence text={data.no_offer.text} /></p>}
      {data.quotas.map(({ text }) => (
        <p key={text}><Sentence text={text} /></p>
      ))}
      {data.deadline && <p><Sentence text={data.deadline.text} /></p>}
      {data.offers[0]?.outlasts_notice && <p><Sentence text={data.offers[0].outlasts_notice.text} /></p>}
      {data.why_not_faster && <p className="muted"><Sentence text={data.why_not_faster.text} /></p>}
    </>
  );
}

/** How far the team can believe a quote: how often those of earlier jobs held, by recipe. */
function Calibration() {
  const held = useQuery(calibration).data;
  if (!held || held.recipes.length === 0) return null;
  return (
    <details data-calibration>
      <summary>How well quotes held</summary>
      <p><Sentence text={held.summary.text} /></p>
      <TableScroll label="How well quotes held, by recipe" short>
        <table>
          <thead>
            <tr>
              <th>Recipe</th>
              <th className="num">Jobs</th>
              <th className="num">Time within</th>
              <th className="num">Cost within</th>
              <th className="num">Not compared</th>
            </tr>
          </thead>
          <tbody>
            {held.recipes.map(({ recipe, compared, time_within, cost_within, not_compared }) => (
              <tr key={recipe}>
                <td>{recipe}</td>
                <td className="num">{compared}</td>
                <td className="num">{compared > 0 ? formatPercent(time_within / compared) : "–"}</td>
                <td className="num">{compared > 0 ? formatPercent(cost_within / compared) : "–"}</td>
                <td className="num">{not_compared}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </TableScroll>
    </details>
  );
}

function Alternatives({ data }: { data: Schemas["Quote"] }) {
  const [best, ...others] = data.offers;
  const counts = data.machine_counts.filter(({ nodes, offer }) => nodes !== data.nodes || offer.type !== best?.offer.type);
  return (
    <>
      {others.length > 0 && <Offers label="Other offers" offers={others.slice(0, 10)} />}
      {counts.length > 0 && <Offers label="Other numbers of machines" offers={counts} />}
    </>
  );
}

function BestOffer({ best }: { best: QuotedOffer }) {
  const { offer } = best;
  return (
    <>
      <dl>
        <dt>Time</dt>
        <dd>{timeText(best)}</dd>
        <dt>Cost</dt>
        <dd>{costText(best)}</dd>
        <dt>From</dt>
        <dd>{basisText(best)}</dd>
        <dt>On</dt>
        <dd>
          {machinesText(best)} ({gpuText(best)}), {offer.market.replace("_", " ")}, {placeText(best)}; {interruptionText(best)}
        </dd>
        <dt>Price</dt>
        <dd>
          {formatDollars(offer.price_per_hour)} per machine and hour, {offer.price_source}
          {offer.fetched_at ? `, ${formatAgo(offer.fetched_at)}` : ""}
          {offer.simulated ? "; nobody is charged it" : ""}
        </dd>
      </dl>
      <p>{budgetText(best)}</p>
    </>
  );
}

function Offers({ label, offers }: { label: string; offers: QuotedOffer[] }) {
  return (
    <details>
      <summary>
        {label} ({offers.length})
      </summary>
      <TableScroll label={label} short>
        <table>
          <thead>
            <tr>
              <th>Machines</th>
              <th>Time</th>
              <th>Cost</th>
              <th>From</th>
              <th>Where</th>
              <th>Not possible</th>
            </tr>
          </thead>
          <tbody>
            {offers.map((one) => (
              <tr key={`${machinesText(one)} ${one.offer.market} ${placeText(one)}`}>
                <td>
                  {machinesText(one)} {one.offer.market.replace("_", " ")}
                </td>
                <td>{timeText(one)}</td>
                <td>{costText(one)}</td>
                <td>{basisText(one)}</td>
                <td>{placeText(one)}</td>
                <td>{notPossibleText(one)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </TableScroll>
    </details>
  );
}
