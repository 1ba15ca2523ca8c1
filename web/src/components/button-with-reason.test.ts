import { expect, test } from "vitest";

const SOURCES = import.meta.glob<string>("../**/*.tsx", { query: "?raw", import: "default", eager: true });
/** A request under way, or a dialog's, which the label of the button says. */
const UNDER_WAY = /^(\w+\.isPending|busy|list\.isFetchingNextPage)$/;

test("a button that can't be pressed says why, unless its own request is under way", () => {
  const silent = Object.entries(SOURCES)
    .filter(([file]) => !file.endsWith("/button-with-reason.tsx"))
    .flatMap(([file, text]) => [...text.matchAll(/<button\b[^>]*?\bdisabled=\{([^}]*)\}/g)].map(([, when = ""]) => [file, when]))
    .filter(([, when]) => !UNDER_WAY.test(when!));
  expect(Object.keys(SOURCES).length).toBeGreaterThan(30);
  expect(silent).toEqual([]);
});
