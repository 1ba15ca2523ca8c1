/** The address is the state: a path, a query, and links that don't reload. */
import { type AnchorHTMLAttributes, type MouseEvent, useSyncExternalStore } from "react";

const listeners = new Set<() => void>();
window.addEventListener("popstate", tell);

export function useLocation(): URL {
  const href = useSyncExternalStore(subscribe, () => window.location.href);
  return new URL(href);
}

export function navigate(to: string, { replace = false } = {}): void {
  if (replace) window.history.replaceState(null, "", to);
  else window.history.pushState(null, "", to);
  if (!replace) window.scrollTo(0, 0);
  tell();
}

export function Link({ to, onClick, children, ...rest }: { to: string } & AnchorHTMLAttributes<HTMLAnchorElement>) {
  function follow(event: MouseEvent<HTMLAnchorElement>) {
    onClick?.(event);
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    navigate(to);
  }
  return <a href={to} onClick={follow} {...rest}>{children}</a>;
}

/** Where to navigate after signing in: only a place of our own. */
export function safeRedirect(next: string | null): string {
  if (!next) return "/";
  const place = new URL(next, window.location.origin);
  return place.origin === window.location.origin && !place.pathname.startsWith("/login") ? place.pathname + place.search + place.hash : "/";
}

function subscribe(changed: () => void): () => void {
  listeners.add(changed);
  return () => listeners.delete(changed);
}

function tell(): void {
  for (const changed of listeners) changed();
}
