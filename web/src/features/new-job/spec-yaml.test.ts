import { expect, test } from "vitest";
import { specChanges, specToCommand, parseValue, yamlError, readField, writeField, specToYaml, withoutDefaults } from "./spec-yaml";

const TEXT = "recipe: digits/quickstart # the quick one\nlimits: {cost: 3.00}\n";

test("a field is read as typed", () => {
  expect(readField(TEXT, ["limits", "cost"])).toBe("3.00");
  expect(readField(TEXT, ["recipe"])).toBe("digits/quickstart");
  expect(readField(TEXT, ["params", "lr"])).toBe("");
});

test("writing a field keeps all other text and comments", () => {
  const text = writeField(TEXT, ["params", "lr"], 0.05);
  expect(text).toContain("# the quick one");
  expect(readField(text, ["params", "lr"])).toBe("0.05");
  expect(readField(text, ["limits", "cost"])).toBe("3.00");
});

test("removing the last field of a mapping removes the mapping", () => {
  expect(writeField(writeField(TEXT, ["params", "lr"], 0.05), ["params", "lr"], undefined)).not.toContain("params");
  expect(writeField(TEXT, ["limits", "cost"], undefined)).toBe("recipe: digits/quickstart # the quick one\n");
});

test("a field can be written into an empty text", () => {
  expect(writeField("", ["resources", "nodes"], 2)).toBe("resources:\n  nodes: 2\n");
});

test("amounts of money stay strings and never become floats", () => {
  expect(writeField("", ["limits", "cost"], "3.10")).toBe('limits:\n  cost: "3.10"\n');
});

test("invalid YAML is not changed and its error is reported", () => {
  expect(yamlError("a: [1")).toMatch(/./);
  expect(writeField("a: [1", ["b"], 1)).toBe("a: [1");
  expect(yamlError(TEXT)).toBeNull();
});

test("typed text is parsed as the parameter's type, or kept for the service to reject", () => {
  expect(parseValue("5e-4", "float")).toBe(0.0005);
  expect(parseValue(" 7 ", "int")).toBe(7);
  expect(parseValue("many", "int")).toBe("many");
  expect(parseValue("", "int")).toBeUndefined();
  expect(parseValue("true", "bool")).toBe(true);
});

test("a stored spec is shown without empty fields", () => {
  expect(specToYaml({ name: null, recipe: "digits/quickstart@1", resources: { nodes: 2, zones: [], disk: null }, env: {} })).toBe(
    "recipe: digits/quickstart@1\nresources:\n  nodes: 2\n",
  );
});

test("the command omits default parameters and quotes for a shell", () => {
  const spec = { name: "it's", recipe: "digits/quickstart@1", params: { lr: 0.1, seed: 7 }, limits: { cost: "3.00", time: null }, tags: { week: "3 4" } };
  expect(specToCommand(spec, { lr: 0.1, seed: 0 })).toBe(
    `shoestring submit digits/quickstart seed=7 name='it'\\''s' limits.cost=3.00 tags.week='3 4'`,
  );
});

test("what a copy changes is told field by field, and what is written otherwise but the same is no change", () => {
  const source = "recipe: digits/quickstart\nparams:\n  lr: 0.1\nlimits:\n  cost: 3.00\nresources:\n  zones: [a]\n";
  expect(specChanges(source, `${source}# a comment\n`)).toEqual([]);
  expect(specChanges(source, "recipe: digits/quickstart\nparams: {lr: 0.05}\nresources: {zones: [a, b]}\nname: mine\n")).toEqual([
    { path: "params.lr", before: "0.1", after: "0.05" },
    { path: "limits.cost", before: "3", after: undefined },
    { path: "resources.zones", before: '["a"]', after: '["a","b"]' },
    { path: "name", before: undefined, after: "mine" },
  ]);
});

test("parameters at their default are left out, those without one are kept", () => {
  expect(withoutDefaults({ lr: 0.1, epochs: 5, crop: [1, 2], own: 0 }, { lr: 0.1, epochs: 24, crop: [1, 2] })).toEqual({ epochs: 5, own: 0 });
});
