/** Invitations by link: for admins. A link is shown once, when it is made. */
import { useMutation, useQuery } from "@tanstack/react-query";
import { type FormEvent, useId, useState } from "react";
import { api, body, type Schemas } from "../../api/client";
import { invitations } from "../../api/queries";
import { Async } from "../../components/async";
import { CopyButton } from "../../components/copy-button";
import { Panel } from "../../components/panel";
import { ProblemNote } from "../../components/problem-note";
import { Time } from "../../components/time";
import { reread } from "./reread";
import { ROLES } from "./roles";

export function InvitationsPanel() {
  const id = useId();
  const [role, setRole] = useState<(typeof ROLES)[number]>("member");
  const reading = useQuery(invitations);
  const invite = useMutation({
    mutationFn: async () => body(await api.POST("/v1/invitations", { body: { role, expires_in_days: 14 } })),
    onSettled: reread,
  });
  const revoke = useMutation({
    mutationFn: async (invitation: string) =>
      void (await api.DELETE("/v1/invitations/{invitation_id}", { params: { path: { invitation_id: invitation } } })),
    onSettled: reread,
  });
  const link = invite.data && `${window.location.origin}/login?invite=${invite.data.code}`;
  function submit(event: FormEvent) {
    event.preventDefault();
    invite.mutate();
  }
  return (
    <Panel title="Invitations">
      <ProblemNote error={invite.error ?? revoke.error} />
      <form className="limit" onSubmit={submit}>
        <div className="row">
          <div className="field">
            <label htmlFor={id}>Role</label>
            <select id={id} value={role} onChange={(event) => setRole(event.target.value as typeof role)}>
              {ROLES.map((one) => (
                <option key={one}>{one}</option>
              ))}
            </select>
          </div>
          <button type="submit" className="primary" disabled={invite.isPending}>
            Make a link
          </button>
        </div>
      </form>
      {link && (
        <div className="note" data-invitation-link>
          <p>
            Send this link to one person. It works once, within 14 days, and is shown only now: <code>{link}</code>
          </p>
          <CopyButton text={link} label="Copy the link" />
          {isOfThisComputer(window.location.hostname) && (
            <p className="muted">
              It opens on this computer alone: the service was started for it only. For others, start it with an address that they reach:{" "}
              shoestring up --host 0.0.0.0, and a certificate where the network isn't yours alone.
            </p>
          )}
        </div>
      )}
      <Async reading={reading} rows={1}>
        {(all) => <OpenInvitations open={all.filter(({ state }) => state === "open")} busy={revoke.isPending} revoke={revoke.mutate} />}
      </Async>
    </Panel>
  );
}

function isOfThisComputer(host: string): boolean {
  return host === "localhost" || host === "[::1]" || host.startsWith("127.");
}

function OpenInvitations({ open, busy, revoke }: { open: Schemas["Invitation"][]; busy: boolean; revoke: (id: string) => void }) {
  if (open.length === 0) return <p className="muted">No invitation is open.</p>;
  return (
    <ul className="plain" aria-label="Open invitations">
      {open.map((one) => (
        <li key={one.id}>
          {one.user ? `${one.user}, ${one.role}` : one.role}, expires <Time at={one.expires_at} />{" "}
          <button type="button" className="small" disabled={busy} onClick={() => revoke(one.id)}>
            Revoke
          </button>
        </li>
      ))}
    </ul>
  );
}
