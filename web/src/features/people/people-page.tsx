/** Who works in the team and what each may do; the reader's own keys and logins. */
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api, body, type Schemas } from "../../api/client";
import { keys, logins, me, members, queries } from "../../api/queries";
import { Async } from "../../components/async";
import { ConfirmDialog } from "../../components/confirm-dialog";
import { CopyButton } from "../../components/copy-button";
import { Page } from "../../components/page";
import { Panel } from "../../components/panel";
import { ProblemNote } from "../../components/problem-note";
import { TableScroll } from "../../components/table-scroll";
import { Time } from "../../components/time";
import { InvitationsPanel } from "./invitations-panel";
import { TeamsPanel } from "./teams-panel";

type Member = Schemas["Member"];
type Key = Schemas["Key"];
type Role = Member["role"];

export const ROLES: readonly Role[] = ["viewer", "member", "lead", "admin"];
const KINDS: Record<Key["kind"], string> = { pat: "personal", svc: "service", job: "job" };

export function PeoplePage() {
  const who = useQuery(me).data;
  const admin = who?.role === "admin";
  return (
    <Page title="People and keys">
      <MembersPanel admin={admin} />
      {admin && <InvitationsPanel />}
      <TeamsPanel admin={admin} />
      <KeysPanel />
      <LoginsPanel />
    </Page>
  );
}

export function reread(): void {
  void queries.invalidateQueries({ queryKey: ["people"] });
}

function MembersPanel({ admin }: { admin: boolean }) {
  const reading = useQuery(members);
  const [removing, setRemoving] = useState<Member | null>(null);
  const setRole = useMutation({
    mutationFn: async ({ id, role }: { id: string; role: Role }) =>
      body(await api.PUT("/v1/members/{user_id}", { params: { path: { user_id: id } }, body: { role } })),
    onSettled: () => queries.invalidateQueries({ queryKey: members.queryKey }), // until then the choice is on show
  });
  const chosen = setRole.isPending ? setRole.variables : null;
  const remove = useMutation({
    mutationFn: async (id: string) => void (await api.DELETE("/v1/members/{user_id}", { params: { path: { user_id: id } } })),
    onSettled: () => {
      setRemoving(null);
      reread();
    },
  });
  return (
    <Panel title="Members">
      <ProblemNote error={setRole.error ?? remove.error} />
      <Async reading={reading}>
        {(all) => (
          <TableScroll label="Members">
            <table className="stacked people">
              <thead>
                <tr>
                  <th>Name</th>
                  <th>Role</th>
                  <th>Keys</th>
                  {admin && <th aria-label="Actions" />}
                </tr>
              </thead>
              <tbody>
                {all.map((one) => (
                  <tr key={one.id} data-member={one.user}>
                    <td className="name">{one.user}</td>
                    <td data-label="Role">{admin ? <RoleSelect member={one} chosen={chosen?.id === one.id ? chosen.role : null} set={(role) => setRole.mutate({ id: one.id, role })} /> : one.role}</td>
                    <td data-label="Keys">{one.keys}</td>
                    {admin && (
                      <td>
                        <button type="button" className="small" onClick={() => setRemoving(one)}>
                          Remove
                        </button>
                      </td>
                    )}
                  </tr>
                ))}
              </tbody>
            </table>
          </TableScroll>
        )}
      </Async>
      <p className="muted">
        A viewer looks; a member runs jobs and asks for dollars; a lead also decides on the budgets of members; an admin does everything.
      </p>
      {removing && (
        <ConfirmDialog
          title={`Remove ${removing.user}?`}
          confirmLabel="Remove"
          busy={remove.isPending}
          confirm={() => remove.mutate(removing.id)}
          close={() => setRemoving(null)}
        >
          <p>Their keys and logins in this team end at once. Their jobs, and what these cost, stay the team’s.</p>
        </ConfirmDialog>
      )}
    </Panel>
  );
}

/** `chosen`: the role that is being set. */
function RoleSelect({ member, chosen, set }: { member: Member; chosen: Role | null; set: (role: Role) => void }) {
  return (
    <select aria-label={`Role of ${member.user}`} value={chosen ?? member.role} onChange={(event) => set(event.target.value as Role)}>
      {ROLES.map((role) => (
        <option key={role}>{role}</option>
      ))}
    </select>
  );
}

function KeysPanel() {
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

function LoginsPanel() {
  const reading = useQuery(logins);
  const end = useMutation({
    mutationFn: async (id: string) => void (await api.DELETE("/v1/sessions/{session_id}", { params: { path: { session_id: id } } })),
    onSettled: reread,
  });
  return (
    <Panel title="Where you are signed in">
      <ProblemNote error={end.error} />
      <Async reading={reading}>
        {(all) => (
          <TableScroll label="Where you are signed in">
            <table className="stacked people">
              <thead>
                <tr>
                  <th>Since</th>
                  <th>Address</th>
                  <th>Browser</th>
                  <th aria-label="Actions" />
                </tr>
              </thead>
              <tbody>
                {all.map((one) => (
                  <tr key={one.id}>
                    <td data-label="Since">
                      <Time at={one.created_at} />
                    </td>
                    <td data-label="Address">{one.address}</td>
                    <td data-label="Browser">{one.current ? "this browser" : one.browser}</td>
                    <td>
                      <button type="button" className="small" disabled={end.isPending} onClick={() => end.mutate(one.id)}>
                        Sign out
                      </button>
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          </TableScroll>
        )}
      </Async>
    </Panel>
  );
}
