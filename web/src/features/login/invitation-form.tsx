/** Accepting an invitation: the invitee chooses a name, unless the invitation is for an existing member. */
import { useMutation, useQuery } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";
import { api, body, Problem, type Schemas } from "../../api/client";
import { ButtonWithReason } from "../../components/button-with-reason";
import { invitation } from "../../api/queries";
import { formatFullTime } from "../../lib/time";
import { Link } from "../../router";
import { ProblemNote } from "../../components/problem-note";

interface Props {
  code: string;
  /** The name that the link says. */
  given: string | null;
  done: (who: Schemas["Me"]) => void;
}

/** What the invitation is for; if it can be taken, the form for it, else what to do. */
export function InvitationForm(props: Props) {
  const { data, error, refetch } = useQuery(invitation(props.code));
  return (
    <div className="login-card">
      <img src="/icon.svg" alt="" width="40" height="40" />
      <h1>{data ? `Join ${data.team} on Shoestring` : "Join a team on Shoestring"}</h1>
      {data ? (
        <>
          <p>
            {data.made_by} invites you to team <strong>{data.team}</strong> as {data.role === "admin" ? "an" : "a"} <strong>{data.role}</strong>:{" "}
            {MAY[data.role]} The invitation is open until {formatFullTime(data.expires_at)}.
          </p>
          <TakeForm {...props} given={data.user ?? props.given} />
        </>
      ) : error ? (
        <>
          <ProblemNote error={error} {...(error instanceof Problem && !error.document.retryable ? {} : { retry: () => void refetch() })} />
          <p>
            Already a member? <Link to="/login">Sign in</Link>.
          </p>
        </>
      ) : (
        <p role="status">Reading the invitation…</p>
      )}
    </div>
  );
}

/** The roles, in short; docs/operations/teams.md has them in full. */
const MAY: Record<Schemas["OpenedInvitation"]["role"], string> = {
  viewer: "you may look at everything and change nothing.",
  member: "you may submit jobs and see what the team spends.",
  lead: "you may submit jobs, and change the budgets of members.",
  admin: "you may do everything, budgets and people included.",
};

function TakeForm({ code, given, done }: Props) {
  const [name, setName] = useState(given ?? "");
  const take = useMutation({
    mutationFn: async () => body(await api.POST("/v1/invitations:take", { body: { code, name: name.trim() } })),
    onSuccess: done,
  });
  function submit(event: FormEvent) {
    event.preventDefault();
    take.mutate();
  }
  return (
    <form className="take" onSubmit={submit}>
      <ProblemNote error={take.error} />
      <label htmlFor="name">Your name</label>
      <input
        id="name"
        autoComplete="username"
        maxLength={100}
        value={name}
        readOnly={given !== null}
        onChange={(event) => setName(event.target.value)}
        required
      />
      <ButtonWithReason type="submit" className="primary" reason={name.trim() === "" ? "Enter your name first." : ""} busy={take.isPending}>
        {take.isPending ? "Joining…" : "Join"}
      </ButtonWithReason>
      <p className="muted">The link works once. It signs this browser in; for the command line, make a key under People and keys.</p>
    </form>
  );
}
