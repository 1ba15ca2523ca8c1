/** Taking an invitation: whoever opened its link chooses a name, unless the invitation is for somebody already. */
import { useMutation } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";
import { api, body, type Schemas } from "../../api/client";
import { ButtonWithReason } from "../../components/button-with-reason";
import { ProblemNote } from "../../components/problem-note";

export function InvitationForm({ code, given, done }: { code: string; given: string | null; done: (who: Schemas["Me"]) => void }) {
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
    <form className="login-card" onSubmit={submit}>
      <img src="/icon.svg" alt="" width="40" height="40" />
      <h1>Join a team on Shoestring</h1>
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
