/** The text of a job spec is the truth; the form reads from it and writes into it, comments and all. */
import { type Document, isScalar, parseDocument, stringify } from "yaml";

export type Path = readonly (string | number)[];

/** What is wrong with the text as YAML, or null. */
export function mistake(text: string): string | null {
  const [error] = parseDocument(text).errors;
  return error ? error.message.split("\n")[0]! : null;
}

/** The literal at a path as it was typed ("3.00" stays "3.00"); "" if there is none. */
export function read(text: string, path: Path): string {
  const found = document(text)?.getIn(path, true);
  if (!isScalar(found) || found.value === null) return "";
  return found.source ?? String(found.value);
}

/** The text with a value at a path; `undefined` takes it away, and the mapping it leaves empty. */
export function write(text: string, path: Path, value: unknown): string {
  const doc = document(text);
  if (!doc) return text;
  if (value !== undefined) {
    doc.setIn(path, value);
    return doc.toString();
  }
  for (let depth = path.length; depth > 0; depth--) {
    const place = path.slice(0, depth);
    const found = doc.getIn(place) as { items?: unknown[] } | undefined;
    if (depth < path.length && !(found && typeof found === "object" && found.items?.length === 0)) break;
    doc.deleteIn(place);
  }
  return doc.toString();
}

/** What a form field's text means to a parameter of that type; text that doesn't fit is sent as it is, to be refused with a reason. */
export function literal(typed: string, type: string): unknown {
  const trimmed = typed.trim();
  if (trimmed === "") return undefined;
  if (type === "bool") return trimmed === "true" ? true : trimmed === "false" ? false : trimmed;
  if (type === "int" || type === "float") {
    const number = Number(trimmed);
    return Number.isFinite(number) ? number : trimmed;
  }
  return trimmed;
}

/** YAML of a stored spec without what it leaves open. */
export function yamlOf(spec: Record<string, unknown>): string {
  return stringify(pruned(spec) ?? {}, { lineWidth: 100 });
}

/** The command that submits the same: parameters that are the recipe's own are left out. */
export function commandOf(spec: Record<string, unknown>, defaults: Record<string, unknown> = {}): string {
  const { recipe, params, ...rest } = (pruned(spec) ?? {}) as Record<string, unknown>;
  const words = ["shoestring", "submit", String(recipe ?? "RECIPE").replace(/@\d+$/, "")];
  for (const [name, value] of Object.entries((params as Record<string, unknown>) ?? {})) {
    if (JSON.stringify(value) !== JSON.stringify(defaults[name])) words.push(`${name}=${quoted(value)}`);
  }
  for (const [path, value] of leaves(rest)) words.push(`${path}=${quoted(value)}`);
  return words.join(" ");
}

function document(text: string): Document | null {
  const doc = parseDocument(text.trim() === "" ? "{}" : text);
  if (doc.errors.length > 0) return null;
  if (text.trim() === "") doc.contents = doc.createNode({}) as typeof doc.contents;
  if (doc.contents && "flow" in doc.contents && text.trim() === "") doc.contents.flow = false;
  return doc.contents && "items" in doc.contents ? doc : null;
}

function pruned(value: unknown): unknown {
  if (Array.isArray(value)) return value.length ? value : undefined;
  if (value === null || typeof value !== "object") return value ?? undefined;
  const kept = Object.entries(value)
    .map(([name, item]) => [name, pruned(item)] as const)
    .filter(([, item]) => item !== undefined);
  return kept.length ? Object.fromEntries(kept) : undefined;
}

function* leaves(tree: Record<string, unknown>, prefix = ""): Generator<[string, unknown]> {
  for (const [name, value] of Object.entries(tree)) {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      yield* leaves(value as Record<string, unknown>, `${prefix}${name}.`);
    } else yield [`${prefix}${name}`, value];
  }
}

function quoted(value: unknown): string {
  const text = Array.isArray(value) ? `[${value.join(", ")}]` : String(value);
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
