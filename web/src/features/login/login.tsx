import { type FormEvent, useEffect, useState } from "react";
import { api, body, Problem, type Schemas } from "../../api/client";
import { me, queries } from "../../api/resources";
import { ProblemNote } from "../../components/parts";
import { go, ownPlace, useAddress } from "../../router";

export function LoginPage() {
  const address = useAddress();
  const code = address.searchParams.get("code");
  const next = ownPlace(address.searchParams.get("next"));
  const [key, setKey] = useState("");
  const [error, setError] = useState<unknown>(null);
  const [waits, setWaits] = useState(false);
  const busy = waits || (code !== null && error === null);

  useEffect(() => {
    document.title = "Sign in · Shoestring";
  }, []);
  useEffect(() => {
    if (code) redeemed(code).then((who) => enter(who, next), setError);
  }, [code, next]);

  function submit(event: FormEvent) {
    event.preventDefault();
    setWaits(true);
    signIn({ key: key.trim() })
      .then((who) => enter(who, next), setError)
      .finally(() => setWaits(false));
  }

  return (
    <main className="login" id="main">
      <form className="card" onSubmit={submit}>
        <img src="/icon.svg" alt="" width="40" height="40" />
        <h1>Sign in to Shoestring</h1>
        {error !== null && <Refusal error={error} byLink={code !== null && key === ""} />}
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
            <button type="submit" className="primary" disabled={busy || key.trim() === ""}>
              {busy ? "Signing in…" : "Sign in"}
            </button>
            <p className="dim">
              On the computer that runs the service, <code>shoestring open</code> signs you in with a link, and{" "}
              <code>shoestring up</code> says where the first admin key lies.
            </p>
          </>
        )}
      </form>
    </main>
  );
}

function Refusal({ error, byLink }: { error: unknown; byLink: boolean }) {
  if (!(error instanceof Problem) || error.document.status !== 401) return <ProblemNote error={error} />;
  return (
    <div className="note bad" role="alert">
      <strong>{byLink ? "This link doesn't sign you in any more" : "This key doesn't sign you in"}</strong>
      <p>
        {byLink
          ? "A link works once, for ten minutes. Ask for a new one with `shoestring open`, or use an API key."
          : "It is mistyped, expired or revoked. A key begins with sst_pat_ and is copied whole."}
      </p>
    </div>
  );
}

function enter(who: Schemas["Me"], next: string): void {
  queries.clear();
  queries.setQueryData(me.queryKey, who);
  go(next, { replace: true });
}

async function signIn(login: Schemas["Login"]): Promise<Schemas["Me"]> {
  return body(await api.POST("/v1/session", { body: login }));
}

/** A code works once, and an effect may run twice. */
const redemptions = new Map<string, Promise<Schemas["Me"]>>();

function redeemed(code: string): Promise<Schemas["Me"]> {
  const known = redemptions.get(code) ?? signIn({ code });
  redemptions.set(code, known);
  return known;
}
