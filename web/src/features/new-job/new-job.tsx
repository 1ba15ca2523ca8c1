import { useMutation, useQuery } from "@tanstack/react-query";
import { type FormEvent, type ReactNode, useId, useState } from "react";
import { api, body, newKey, Problem, type Schemas } from "../../api/client";
import { budgets, job as jobQuery, type Job, queries, recipes } from "../../api/resources";
import { dollars } from "../../lib/money";
import { Page, Panel, ProblemNote, Skeleton } from "../../components/parts";
import { go, useAddress } from "../../router";
import { literal, mistake, type Path, read, write, yamlOf } from "./spec";
import { tightest } from "../budget/budget";

type Recipe = Schemas["Recipe"];
type Fault = { pointer: string; message: string; suggestion?: string };

export default function NewJobPage() {
  const all = useQuery(recipes);
  const query = useAddress().searchParams;
  const from = query.get("from");
  const source = useQuery({ ...jobQuery(from ?? ""), enabled: from !== null });
  const ready = all.data && (from === null || source.data || source.error);
  return (
    <Page title="New job" wide>
      <ProblemNote error={all.error ?? source.error} />
      {ready ? <Form recipes={all.data} begin={beginning(all.data, query.get("recipe"), source.data)} /> : !all.error && <Skeleton rows={6} />}
    </Page>
  );
}

function beginning(all: Recipe[], wanted: string | null, source: Job | undefined): string {
  if (source) return yamlOf({ ...source.spec, name: undefined });
  const recipe = all.find(({ name }) => name === wanted) ?? all.find(({ data }) => data === "digits") ?? all[0];
  return recipe ? startOf(recipe) : "";
}

function startOf(recipe: Recipe): string {
  const data = recipe.data === "digits" ? "" : "data:\n  train: /path/to/pictures\n";
  return `recipe: ${recipe.name}\n${data}resources:\n  nodes: 2\n`;
}

// Where a recipe's data lies, by its kind; the digits come with the service.
const FOLDERS: Record<string, { label: string; help: string }> = {
  cifar10: { label: "Folder of CIFAR-10", help: "Its binary or Python version, under a data root of the service." },
  imagefolder: { label: "Folder of pictures", help: "One sub-folder per class, under a data root of the service." },
};

function families(all: Recipe[]): [string, Recipe[]][] {
  const of = ({ name }: Recipe) => name.split("/", 1)[0]!;
  return [...new Set(all.map(of))].map((family) => [family, all.filter((one) => of(one) === family)]);
}

function Form({ recipes: all, begin }: { recipes: Recipe[]; begin: string }) {
  const [text, setText] = useState(begin);
  const [key, setKey] = useState(newKey);
  const broken = mistake(text);
  const recipe = all.find(({ name }) => name === read(text, ["recipe"]).replace(/@\d+$/, ""));
  const folder = recipe && FOLDERS[recipe.data];

  const check = useMutation({ mutationFn: async () => send(text, true) });
  const submit = useMutation({
    mutationFn: async () => send(text, false, key),
    onSuccess: (job) => {
      queries.setQueryData(jobQuery(job.id).queryKey, job);
      void queries.invalidateQueries({ queryKey: ["jobs"] });
      go(`/jobs/${job.id}`);
    },
  });

  /** Another text is another request: it gets a key of its own, and old faults don't speak about it. */
  function edit(next: string) {
    setText(next);
    setKey(newKey());
    check.reset();
    submit.reset();
  }

  const error = submit.error ?? check.error;
  const faults = error instanceof Problem ? (error.document.errors as Fault[]) : [];
  const set = (path: Path, value: unknown) => edit(write(text, path, value));
  const field = (path: Path) => ({ value: read(text, path), faults: at(faults, path), disabled: broken !== null });
  const placed = new Set(FIXED.map((path) => pointer(path)).concat((recipe?.params ?? []).map(({ name }) => `/params/${name}`)));
  const elsewhere = faults.filter((fault) => !placed.has(fault.pointer));

  return (
    <form
      className="new-job"
      noValidate
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        submit.mutate();
      }}
    >
      <div className="stack">
        <Panel title="Recipe">
          <select
            className="recipes"
            aria-label="Recipe"
            disabled={broken !== null}
            value={recipe?.name ?? ""}
            onChange={(event) => {
              const chosen = all.find(({ name }) => name === event.target.value);
              if (chosen) edit(startOf(chosen));
            }}
          >
            {!recipe && <option value="">Choose one</option>}
            {families(all).map(([family, members]) => (
              <optgroup key={family} label={family}>
                {members.map(({ name, title }) => (
                  <option key={name} value={name}>
                    {name}: {title}
                  </option>
                ))}
              </optgroup>
            ))}
          </select>
          {recipe && <p className="dim">{recipe.description}</p>}
        </Panel>
        {folder && (
          <Panel title="Data">
            <Field {...folder} {...field(["data", "train"])} set={(typed) => set(["data", "train"], typed || undefined)} wide />
          </Panel>
        )}
        <Panel title="Machines and limits">
          <div className="fields">
            <Field label="Machines" help="They train together as one gang. Empty: one, or as many as the time limit needs." type="number" min={1} placeholder="1" {...field(["resources", "nodes"])} set={(typed) => set(["resources", "nodes"], literal(typed, "int"))} />
            <Choice label="Spot machines" help="Cheaper; the provider may take them, and the job goes on from a checkpoint." options={["prefer", "only", "never"]} {...field(["resources", "spot"])} set={(typed) => set(["resources", "spot"], typed || undefined)} />
            <Field label="Cost limit, dollars" help="The most that the job may cost. Empty: what the budgets allow." inputMode="decimal" placeholder="no own limit" {...field(["limits", "cost"])} set={(typed) => set(["limits", "cost"], typed.trim() || undefined)} />
            <Field label="Time limit" help="Such as 90s, 5m, 2h, 1d." placeholder="none" {...field(["limits", "time"])} set={(typed) => set(["limits", "time"], typed.trim() || undefined)} />
            <Choice label="When the money runs out" help="After the last checkpoint." options={["pause", "stop"]} {...field(["on_budget"])} set={(typed) => set(["on_budget"], typed || undefined)} />
            <Field label="Start with" help="The weights of job/ID, or of a model at a path under a data root." placeholder="fresh weights" {...field(["init"])} set={(typed) => set(["init"], typed.trim() || undefined)} />
            <Field label="Name" help="What people call it." placeholder={recipe?.name ?? ""} {...field(["name"])} set={(typed) => set(["name"], typed || undefined)} />
          </div>
        </Panel>
        {recipe && (
          <Panel title="Parameters" aside={<span className="dim">empty means the recipe's own value</span>}>
            <div className="fields">
              {recipe.params.map((param) => (
                <Parameter key={param.name} param={param} {...field(["params", param.name])} set={(typed) => set(["params", param.name], literal(typed, param.type))} />
              ))}
            </div>
          </Panel>
        )}
      </div>
      <div className="stack sticky">
        <Panel title="The spec this writes" aside={<span className="dim">edit either side</span>}>
          <textarea
            className="spec"
            aria-label="Job spec, YAML"
            spellCheck={false}
            rows={Math.min(28, Math.max(10, text.split("\n").length + 1))}
            value={text}
            onChange={(event) => edit(event.target.value)}
          />
          {broken && (
            <p className="field-error" role="alert">
              {broken}
            </p>
          )}
          {elsewhere.map((fault) => (
            <p key={fault.pointer + fault.message} className="field-error" role="alert">
              <code>{fault.pointer.slice(1).replaceAll("/", ".") || "spec"}</code> {sentenceOf(fault)}
            </p>
          ))}
          {faults.length === 0 && <ProblemNote error={error} />}
          {faults.length > elsewhere.length && (
            <p className="field-error" role="alert">
              {faults.length - elsewhere.length === 1 ? "One field" : `${faults.length - elsewhere.length} fields`} of the form can't be accepted.
            </p>
          )}
          {check.isSuccess && (
            <p className="note good" role="status">
              It would be accepted{check.data.cost.limit ? ` and cost at most ${dollars(check.data.cost.limit)}` : ""}.
            </p>
          )}
          <div className="row end">
            <BudgetNote />
            <button type="button" disabled={broken !== null || check.isPending} onClick={() => check.mutate()}>
              {check.isPending ? "Checking…" : "Check"}
            </button>
            <button type="submit" className="primary" disabled={broken !== null || submit.isPending}>
              {submit.isPending ? "Submitting…" : "Submit"}
            </button>
          </div>
        </Panel>
      </div>
    </form>
  );
}

const FIXED: Path[] = [["data", "train"], ["resources", "nodes"], ["resources", "spot"], ["limits", "cost"], ["limits", "time"], ["on_budget"], ["init"], ["name"]];

async function send(text: string, dry: boolean, key?: string): Promise<Job> {
  return body(
    await api.POST("/v1/jobs", {
      params: { header: key ? { "Idempotency-Key": key } : {} },
      body: { spec: text, dry_run: dry },
    }),
  ) as Job;
}

interface Editable {
  value: string;
  faults: Fault[];
  disabled: boolean;
  set: (typed: string) => void;
}

function Parameter({ param, ...rest }: { param: Schemas["RecipeParameter"] } & Editable) {
  const shown = param.default === null || param.default === undefined ? "" : String(param.default);
  const range = param.minimum !== null && param.maximum !== null ? ` ${param.minimum} to ${param.maximum}.` : "";
  const help = `${param.help}${range}`;
  if (param.choices) return <Choice label={param.name} help={help} options={param.choices.map(String)} normal={shown} {...rest} />;
  if (param.type === "bool") return <Choice label={param.name} help={help} options={["true", "false"]} normal={shown} {...rest} />;
  return <Field label={param.name} help={help} placeholder={shown} inputMode={param.type === "str" ? "text" : "decimal"} {...rest} />;
}

function Field({ label, help, value, faults, disabled, set, wide = false, ...input }: {
  label: string;
  help: string;
  wide?: boolean;
  type?: string;
  min?: number;
  placeholder?: string;
  inputMode?: "decimal" | "text";
} & Editable) {
  // What is being typed stays as typed; the spec may hold it in another form.
  const [typing, setTyping] = useState<string | null>(null);
  return (
    <Labelled label={label} help={help} faults={faults} wide={wide}>
      {(ids) => (
        <input
          {...ids}
          {...input}
          autoComplete="off"
          disabled={disabled}
          value={typing ?? value}
          onBlur={() => setTyping(null)}
          onChange={(event) => {
            setTyping(event.target.value);
            set(event.target.value);
          }}
        />
      )}
    </Labelled>
  );
}

function Choice({ label, help, options, normal, value, faults, disabled, set }: {
  label: string;
  help: string;
  options: string[];
  normal?: string;
} & Editable) {
  return (
    <Labelled label={label} help={help} faults={faults}>
      {(ids) => (
        <select {...ids} disabled={disabled} value={value} onChange={(event) => set(event.target.value)}>
          <option value="">{normal ?? options[0]} (normal)</option>
          {options.map((one) => (
            <option key={one} value={one}>
              {one}
            </option>
          ))}
          {value !== "" && !options.includes(value) && <option value={value}>{value}</option>}
        </select>
      )}
    </Labelled>
  );
}

function Labelled({ label, help, faults, wide = false, children }: {
  label: string;
  help: string;
  faults: Fault[];
  wide?: boolean;
  children: (ids: { id: string; "aria-describedby": string; "aria-invalid": boolean }) => ReactNode;
}) {
  const id = useId();
  return (
    <div className={wide ? "field wide" : "field"}>
      <label htmlFor={id}>{label}</label>
      {children({ id, "aria-describedby": `${id}-help`, "aria-invalid": faults.length > 0 })}
      <p id={`${id}-help`} className={faults.length > 0 ? "field-error" : "help"}>
        {faults.length > 0 ? faults.map(sentenceOf).join(" ") : help}
      </p>
    </div>
  );
}

function BudgetNote() {
  const budget = tightest(useQuery(budgets).data ?? []);
  return budget?.left ? <span className="dim grow">{dollars(budget.left)} left of the {budget.kind} budget</span> : <span className="grow" />;
}

function at(faults: Fault[], path: Path): Fault[] {
  return faults.filter((fault) => fault.pointer === pointer(path));
}

function pointer(path: Path): string {
  return path.map((part) => `/${String(part).replaceAll("~", "~0").replaceAll("/", "~1")}`).join("");
}

function sentenceOf(fault: Fault): string {
  const said = fault.suggestion ? ` Did you mean ${fault.suggestion}?` : "";
  return /did you mean/i.test(fault.message) ? fault.message : `${fault.message}${said}`;
}
