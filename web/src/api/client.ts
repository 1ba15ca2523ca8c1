/** The typed API client. Every error response is a `Problem`; 401 leads to the sign-in page. */
import createClient, { type Middleware } from "openapi-fetch";
import type { components, paths } from "./schema";

export type Schemas = components["schemas"];
export type ProblemDocument = Schemas["ProblemDocument"];

const TIMEOUT_MS = 20_000;

export class Problem extends Error {
  constructor(readonly document: ProblemDocument) {
    super(document.detail || document.title);
    this.name = "Problem";
  }

  get code(): string {
    return this.document.code;
  }
}

let csrf: string | null = null;
let signedOutHandler: () => void = () => {};

export function setCsrf(token: string | null): void {
  csrf = token;
}

export function onSignedOut(handler: () => void): void {
  signedOutHandler = handler;
}

/** The session in which each request was sent, by its token: of a later one, its answer says nothing. */
const sentIn = new WeakMap<Request, string | null>();

const guard: Middleware = {
  onRequest({ request }) {
    sentIn.set(request, csrf);
    if (csrf && !["GET", "HEAD"].includes(request.method)) request.headers.set("X-CSRF-Token", csrf);
    return request;
  },
  async onResponse({ request, response, schemaPath }) {
    if (response.ok || response.status === 304) return undefined;
    const ofAnyone = schemaPath === "/v1/session" || schemaPath.startsWith("/v1/invitations:");
    if (response.status === 401 && !ofAnyone && sentIn.get(request) === csrf) signedOutHandler();
    throw new Problem(await problemOf(response));
  },
  onError({ error }) {
    if (error instanceof Problem) return error;
    return new Problem({
      type: "/problems/unreachable",
      title: "The service can't be reached",
      status: 0,
      detail: "The service did not answer.",
      code: "unreachable",
      hint: "Is `shoestring up` still running? This page reconnects automatically.",
      retryable: true,
      errors: [],
    });
  },
};

export const api = createClient<paths>({
  baseUrl: "/",
  fetch: (request) => fetch(request, { signal: AbortSignal.any([request.signal, AbortSignal.timeout(TIMEOUT_MS)]) }),
});
api.use(guard);

/** The body of an answer that can't be an error any more. */
export function body<T>(answer: { data?: T }): T {
  return answer.data as T;
}

/** An Idempotency-Key. (`crypto.randomUUID` is missing on plain http to another host.) */
export function newIdempotencyKey(): string {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function problemOf(response: Response): Promise<ProblemDocument> {
  const fallback: ProblemDocument = {
    type: "/problems/internal",
    title: "Something went wrong",
    status: response.status,
    detail: `The service answered ${response.status}.`,
    code: "internal",
    hint: "Try again. If it stays, tell the operator.",
    retryable: response.status >= 500,
    errors: [],
  };
  try {
    return { ...fallback, ...((await response.json()) as Partial<ProblemDocument>) };
  } catch {
    return fallback;
  }
}
