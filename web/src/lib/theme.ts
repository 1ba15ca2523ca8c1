import { useSyncExternalStore } from "react";

export const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const PLACE = "shoestring.theme";
const listeners = new Set<() => void>();
const dark = window.matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => tell());

export function readTheme(): Theme {
  const stored = localStorage.getItem(PLACE);
  return THEMES.find((theme) => theme === stored) ?? "system";
}

export function setTheme(theme: Theme): void {
  localStorage.setItem(PLACE, theme);
  applyTheme();
  tell();
}

export function applyTheme(): void {
  document.documentElement.dataset.theme = readTheme();
}

export function useTheme(): Theme {
  return useSyncExternalStore(subscribe, readTheme);
}

/** What is on the screen now: canvases are painted again when it changes. */
export function useIsDark(): boolean {
  return useSyncExternalStore(subscribe, () => (readTheme() === "system" ? dark.matches : readTheme() === "dark"));
}

/** The colour behind a CSS variable, as a canvas understands it. */
export function cssColor(name: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}

function subscribe(changed: () => void): () => void {
  listeners.add(changed);
  return () => listeners.delete(changed);
}

function tell(): void {
  for (const changed of listeners) changed();
}
