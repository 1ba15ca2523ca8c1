/** The reader's own keys. */
import { useMutation, useQuery } from "@tanstack/react-query";
import { api, body, type Schemas } from "../../api/client";
import { keys } from "../../api/queries";
import { Async } from "../../components/async";
import { CopyButton } from "../../components/copy-button";
import { Panel } from "../../components/panel";
import { ProblemNote } from "../../components/problem-note";
import { TableScroll } from "../../components/table-scroll";
import { Time } from "../../components/time";
import { reread } from "./reread";

type Key = Schemas["Key"];

const KINDS: Record<Key["kind"], string> = { pat: "personal", svc: "service", job: "job" };

export function KeysPanel() {
  const reading = useQuery(keys);
  const revoke = useMutation({
    mutationFn: async (id: string) => void (await api.DELETE("/v1/keys/{key_id}", { params: { path: { key_id: id } } })),
    onSettled: reread,
  });
  const make = useMutation({
    mutationFn: async () => body(await api.POST("/v1/keys", { body: { kind: "pat", name: "made in the browser", expires_in_days: 90 } })),
    onSettled: reread,
  });
  return (
    <Panel
      title="Your keys"
      aside={
        <button type="button" className="small" disabled={make.isPending} onClick={() => make.mutate()}>
          Make a key
        </button>
      }
    >
      <ProblemNote error={revoke.error ?? make.error} />
      {make.data && (
        <div className="note" data-new-key>
          <p>
            Your key, shown only now: <code>{make.data.secret}</code>{" "}
            {make.data.key.expires_at && (
              <>
                It ends <Time at={make.data.key.expires_at} />, no later than the login or key that it was made with.
              </>
            )}
          </p>
          <CopyButton text={make.data.secret} label="Copy the key" />
        </div>
      )}
      <Async reading={reading}>
        {(all) => <KeysTable valid={all.filter(isValid)} busy={revoke.isPending} revoke={revoke.mutate} />}
      </Async>
      <p className="muted">
        With fewer rights, or for a service or one job: <code>shoestring keys create --help</code>. Revoking one ends every key and login that was made with it.
      </p>
    </Panel>
  );
}

/** Neither revoked nor past its end. */
function isValid({ revoked_at, expires_at }: Key): boolean {
  return !revoked_at && (!expires_at || Date.parse(expires_at) > Date.now());
}

function KeysTable({ valid, busy, revoke }: { valid: Key[]; busy: boolean; revoke: (id: string) => void }) {
  if (valid.length === 0) return <p className="muted">You have no key.</p>;
  return (
    <TableScroll label="Your keys">
      <table className="stacked people">
        <thead>
          <tr>
            <th>Key</th>
            <th>Kind</th>
            <th>May</th>
            <th>Last used</th>
            <th>Ends</th>
            <th aria-label="Actions" />
          </tr>
        </thead>
        <tbody>
          {valid.map((one) => (
            <tr key={one.id}>
              <td className="name">{one.name || <code>{one.id.slice(-8)}</code>}</td>
              <td data-label="Kind">{KINDS[one.kind]}</td>
              <td data-label="May">{one.scopes ? one.scopes.join(", ") : "all"}</td>
              <td data-label="Last used">{one.last_used_at ? <Time at={one.last_used_at} /> : "never"}</td>
              <td data-label="Ends">{one.expires_at ? <Time at={one.expires_at} /> : "never"}</td>
              <td>
                <button type="button" className="small" disabled={busy} onClick={() => revoke(one.id)}>
                  Revoke
                </button>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </TableScroll>
  );
}
