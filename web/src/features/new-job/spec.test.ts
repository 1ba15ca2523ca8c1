import { expect, test } from "vitest";
import { commandOf, literal, mistake, read, write, yamlOf } from "./spec";

const TEXT = "recipe: digits/quickstart # the quick one\nlimits: {cost: 3.00}\n";

test("a field is read as it was typed", () => {
  expect(read(TEXT, ["limits", "cost"])).toBe("3.00");
  expect(read(TEXT, ["recipe"])).toBe("digits/quickstart");
  expect(read(TEXT, ["params", "lr"])).toBe("");
});

test("writing a field keeps the rest, comments too", () => {
  const text = write(TEXT, ["params", "lr"], 0.05);
  expect(text).toContain("# the quick one");
  expect(read(text, ["params", "lr"])).toBe("0.05");
  expect(read(text, ["limits", "cost"])).toBe("3.00");
});

test("taking the last field of a part away takes the part away", () => {
  expect(write(write(TEXT, ["params", "lr"], 0.05), ["params", "lr"], undefined)).not.toContain("params");
  expect(write(TEXT, ["limits", "cost"], undefined)).toBe("recipe: digits/quickstart # the quick one\n");
});

test("an empty text can be written into", () => {
  expect(write("", ["resources", "nodes"], 2)).toBe("resources:\n  nodes: 2\n");
});

test("money that was typed stays text, so that it never becomes a float", () => {
  expect(write("", ["limits", "cost"], "3.10")).toBe('limits:\n  cost: "3.10"\n');
});

test("a text that is no YAML is left as it is and its mistake named", () => {
  expect(mistake("a: [1")).toMatch(/./);
  expect(write("a: [1", ["b"], 1)).toBe("a: [1");
  expect(mistake(TEXT)).toBeNull();
});

test("what is typed becomes what the parameter takes, or stays to be refused", () => {
  expect(literal("5e-4", "float")).toBe(0.0005);
  expect(literal(" 7 ", "int")).toBe(7);
  expect(literal("many", "int")).toBe("many");
  expect(literal("", "int")).toBeUndefined();
  expect(literal("true", "bool")).toBe(true);
});

test("a stored spec is shown without what it leaves open", () => {
  expect(yamlOf({ name: null, recipe: "digits/quickstart@1", resources: { nodes: 2, zones: [], disk: null }, env: {} })).toBe(
    "recipe: digits/quickstart@1\nresources:\n  nodes: 2\n",
  );
});

test("its command leaves out what is the recipe's own, and quotes for a shell", () => {
  const spec = { name: "it's", recipe: "digits/quickstart@1", params: { lr: 0.1, seed: 7 }, limits: { cost: "3.00", time: null }, tags: { week: "3 4" } };
  expect(commandOf(spec, { lr: 0.1, seed: 0 })).toBe(
    `shoestring submit digits/quickstart seed=7 name='it'\\''s' limits.cost=3.00 tags.week='3 4'`,
  );
});
