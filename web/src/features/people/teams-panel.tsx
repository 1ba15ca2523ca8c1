/** The reader's teams, and for admins a new one. Its key is shown once, when it is made. */
import { useMutation, useQuery } from "@tanstack/react-query";
import { type FormEvent, useId, useState } from "react";
import { api, body } from "../../api/client";
import { teams } from "../../api/queries";
import { CopyButton } from "../../components/copy-button";
import { Panel } from "../../components/panel";
import { ButtonWithReason } from "../../components/button-with-reason";
import { ProblemNote } from "../../components/problem-note";
import { reread } from "./reread";

export function TeamsPanel({ admin }: { admin: boolean }) {
  const id = useId();
  const [name, setName] = useState("");
  const { data, error } = useQuery(teams);
  const create = useMutation({
    mutationFn: async () => body(await api.POST("/v1/teams", { body: { name: name.trim() } })),
    onSuccess: () => setName(""),
    onSettled: reread,
  });
  function submit(event: FormEvent) {
    event.preventDefault();
    create.mutate();
  }
  return (
    <Panel title="Your teams">
      <ProblemNote error={error ?? create.error} />
      <ul className="plain" aria-label="Your teams">
        {(data ?? []).map((one) => (
          <li key={one.id} data-team={one.name}>
            {one.name}, {one.role}
            {one.current && <span className="muted"> · the one that you see</span>}
          </li>
        ))}
      </ul>
      {admin && (
        <form className="limit" onSubmit={submit}>
          <div className="row">
            <div className="field">
              <label htmlFor={id}>New team</label>
              <input id={id} value={name} maxLength={100} required onChange={(event) => setName(event.target.value)} />
            </div>
            <ButtonWithReason type="submit" className="primary" reason={name.trim() === "" ? "Enter its name first." : ""} busy={create.isPending}>
              Make a team
            </ButtonWithReason>
          </div>
        </form>
      )}
      {create.data && (
        <div className="note" data-new-team>
          <p>
            You are the admin of {create.data.team.name}, which may spend $10.00 until you set another limit. Sign in to it with this key, which is shown only
            now: <code>{create.data.secret}</code>
          </p>
          <CopyButton text={create.data.secret} label="Copy the key" />
        </div>
      )}
    </Panel>
  );
}
