/** Reads and writes fields in the YAML text of a job spec, which the form edits; comments are preserved. */
import { type Document, isScalar, parseDocument, stringify } from "yaml";

export type Path = readonly (string | number)[];

/** Return the YAML syntax error of the text, or null. */
export function yamlError(text: string): string | null {
  const [error] = parseDocument(text).errors;
  return error ? error.message.split("\n")[0]!.replace(/:$/, ".") : null;
}

/** Return the scalar at a path as it was typed ("3.00" stays "3.00"), or "" if there is none. */
export function readField(text: string, path: Path): string {
  const node = parseMapping(text)?.getIn(path, true);
  if (!isScalar(node) || node.value === null) return "";
  return node.source ?? String(node.value);
}

/** Return the text with the value set at a path; `undefined` removes the field and mappings that become empty. */
export function writeField(text: string, path: Path, value: unknown): string {
  const doc = parseMapping(text);
  if (!doc) return text;
  if (value !== undefined) {
    doc.setIn(path, value);
    return doc.toString();
  }
  for (let depth = path.length; depth > 0; depth--) {
    const prefix = path.slice(0, depth);
    const node = doc.getIn(prefix) as { items?: unknown[] } | undefined;
    if (depth < path.length && !(node && typeof node === "object" && node.items?.length === 0)) break;
    doc.deleteIn(prefix);
  }
  return doc.toString();
}

/** Parse a form field's text as a parameter type. Invalid text is returned unchanged, so that the service reports it. */
export function parseValue(typed: string, type: string): unknown {
  const trimmed = typed.trim();
  if (trimmed === "") return undefined;
  if (type === "bool") return trimmed === "true" ? true : trimmed === "false" ? false : trimmed;
  if (type === "int" || type === "float") {
    const number = Number(trimmed);
    return Number.isFinite(number) ? number : trimmed;
  }
  return trimmed;
}

/** Return the YAML of a stored spec, without empty fields. */
export function specToYaml(spec: Record<string, unknown>): string {
  return stringify(withoutEmpty(spec) ?? {}, { lineWidth: 100 });
}

/** Return the parameters that have another value than the default. */
export function withoutDefaults(params: Record<string, unknown>, defaults: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(params).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(defaults[name])));
}

/** Return the shell command that submits the spec, without parameters at their default. */
export function specToCommand(spec: Record<string, unknown>, defaults: Record<string, unknown> = {}): string {
  const { recipe, params, ...rest } = (withoutEmpty(spec) ?? {}) as Record<string, unknown>;
  const words = ["shoestring", "submit", String(recipe ?? "RECIPE").replace(/@\d+$/, "")];
  for (const [name, value] of Object.entries(withoutDefaults((params as Record<string, unknown>) ?? {}, defaults))) {
    words.push(`${name}=${shellQuote(value)}`);
  }
  for (const [path, value] of leaves(rest)) words.push(`${path}=${shellQuote(value)}`);
  return words.join(" ");
}

/** The fields in which a spec's text differs from another, as dotted paths with both values; undefined where one has none. */
export function specChanges(before: string, after: string): { path: string; before: string | undefined; after: string | undefined }[] {
  const [old, next] = [before, after].map((text) => {
    const tree: unknown = parseMapping(text)?.toJS() ?? {};
    return new Map([...leaves((withoutEmpty(tree) ?? {}) as Record<string, unknown>)].map(([path, value]) => [path, shown(value)]));
  }) as [Map<string, string>, Map<string, string>];
  const paths = new Set([...old.keys(), ...next.keys()]);
  return [...paths]
    .filter((path) => old.get(path) !== next.get(path))
    .map((path) => ({ path, before: old.get(path), after: next.get(path) }));
}

function shown(value: unknown): string {
  return Array.isArray(value) ? JSON.stringify(value) : String(value);
}

function parseMapping(text: string): Document | null {
  const doc = parseDocument(text.trim() === "" ? "{}" : text);
  if (doc.errors.length > 0) return null;
  if (text.trim() === "") doc.contents = doc.createNode({}) as typeof doc.contents;
  if (doc.contents && "flow" in doc.contents && text.trim() === "") doc.contents.flow = false;
  return doc.contents && "items" in doc.contents ? doc : null;
}

function withoutEmpty(value: unknown): unknown {
  if (Array.isArray(value)) return value.length ? value : undefined;
  if (value === null || typeof value !== "object") return value ?? undefined;
  const kept = Object.entries(value)
    .map(([name, item]) => [name, withoutEmpty(item)] as const)
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

function shellQuote(value: unknown): string {
  const text = Array.isArray(value) ? `[${value.join(", ")}]` : String(value);
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
