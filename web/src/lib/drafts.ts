/** What was typed into a form, kept for its tab: it outlives a reload, and a session that ended meanwhile. */

const PREFIX = "shoestring draft ";

/** The draft, or null. Without storage, which a browser may forbid, there are no drafts. */
export function readDraft(name: string): string | null {
  return storage((kept) => kept.getItem(PREFIX + name));
}

/** Keep a draft; null forgets it. */
export function keepDraft(name: string, text: string | null): void {
  storage((kept) => (text === null ? kept.removeItem(PREFIX + name) : kept.setItem(PREFIX + name, text)));
}

/** After signing out, nothing typed stays behind. */
export function forgetDrafts(): void {
  storage((kept) => {
    const names = Array.from({ length: kept.length }, (_, i) => kept.key(i) ?? "");
    for (const name of names.filter((one) => one.startsWith(PREFIX))) kept.removeItem(name);
  });
}

function storage<T>(use: (kept: Storage) => T): T | null {
  try {
    return use(window.sessionStorage);
  } catch {
    return null;
  }
}
