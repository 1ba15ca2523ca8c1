import { type FormEvent, useEffect, useState } from "react";
import { api, body, Problem, type Schemas } from "../../api/client";
import { me, queries } from "../../api/queries";
import { ButtonWithReason } from "../../components/button-with-reason";
import { ProblemNote } from "../../components/problem-note";
import { InvitationForm } from "./invitation-form";
import { navigate, safeRedirect, useLocation } from "../../router";

export function LoginPage() {
  const address = useLocation();
  const code = address.searchParams.get("code");
  const next = safeRedirect(address.searchParams.get("next"));
  const [key, setKey] = useState("");
  const [error, setError] = useState<unknown>(null);
  const [submitting, setSubmitting] = useState(false);
  const busy = submitting || (code !== null && error === null);

  useEffect(() => {
    document.title = "Sign in · Shoestring";
  }, []);
  useEffect(() => {
    if (code) redeemCode(code).then((who) => completeSignIn(who, next), setError);
  }, [code, next]);

  const invitation = address.searchParams.get("invite");
  if (invitation) {
    return (
      <main className="login" id="main">
        <InvitationForm code={invitation} given={address.searchParams.get("name")} done={(who) => completeSignIn(who, next)} />
      </main>
    );
  }

  function submit(event: FormEvent) {
    event.preventDefault();
    setSubmitting(true);
    signIn({ key: key.trim() })
      .then((who) => completeSignIn(who, next), setError)
      .finally(() => setSubmitting(false));
  }

  return (
    <main className="login" id="main">
      <form className="login-card" onSubmit={submit}>
        <img src="/icon.svg" alt="" width="40" height="40" />
        <h1>Sign in to Shoestring</h1>
        {error === null && address.searchParams.has("ended") && (
          <div className="note warn" role="status">
            <strong>Your session has ended</strong>
            <p>It expired, or was ended elsewhere. Sign in again to go on where you were; a job spec that you were writing is kept.</p>
          </div>
        )}
        {error !== null && <SignInError error={error} byLink={code !== null && key === ""} />}
        {busy && code && !error ? (
          <p role="status">Signing you in…</p>
        ) : (
          <>
            <label htmlFor="key">API key</label>
            <input
              id="key"
              type="password"
              autoComplete="current-password"
              placeholder="sst_pat_…"
              maxLength={200}
              value={key}
              onChange={(event) => setKey(event.target.value)}
              required
            />
            <ButtonWithReason type="submit" className="primary" reason={key.trim() === "" ? "Paste an API key first." : ""} busy={busy}>
              {busy ? "Signing in…" : "Sign in"}
            </ButtonWithReason>
            <p className="muted">
              On the computer that runs the service, <code>shoestring open</code> signs you in with a link, and{" "}
              <code>shoestring up</code> prints where the first admin key is stored.
            </p>
          </>
        )}
      </form>
    </main>
  );
}

function SignInError({ error, byLink }: { error: unknown; byLink: boolean }) {
  if (!(error instanceof Problem) || error.document.status !== 401) return <ProblemNote error={error} />;
  return (
    <div className="note bad" role="alert">
      <strong>{byLink ? "This sign-in link is no longer valid" : "This API key is not valid"}</strong>
      <p>
        {byLink
          ? "A link works once and expires after ten minutes. Get a new one with shoestring open, or use an API key."
          : "It is mistyped, expired or revoked. API keys begin with sst_pat_."}
      </p>
    </div>
  );
}

function completeSignIn(who: Schemas["Me"], next: string): void {
  queries.clear();
  queries.setQueryData(me.queryKey, who);
  navigate(next, { replace: true });
}

async function signIn(login: Schemas["LoginRequest"]): Promise<Schemas["Me"]> {
  return body(await api.POST("/v1/session", { body: login }));
}

/** Redemptions by code: a code works once, but an effect may run twice. */
const redemptions = new Map<string, Promise<Schemas["Me"]>>();

function redeemCode(code: string): Promise<Schemas["Me"]> {
  const known = redemptions.get(code) ?? signIn({ code });
  redemptions.set(code, known);
  return known;
}
