import { useMutation, useQuery } from "@tanstack/react-query";
import { type FormEvent, type ReactNode, useId, useState } from "react";
import { api, body, newIdempotencyKey, Problem, type Schemas } from "../../api/client";
import { budgets, me, job as jobQuery, type Job, offers, queries, recipes } from "../../api/queries";
import { formatDollars } from "../../lib/money";
import { Async } from "../../components/async";
import { Page } from "../../components/page";
import { Panel } from "../../components/panel";
import { ProblemNote } from "../../components/problem-note";
import { navigate, useLocation } from "../../router";
import { gpuChoices, gpuHelp } from "./gpu-choices";
import { QuotePanel } from "./quote-panel";
import { parseValue, yamlError, type Path, readField, writeField, specToYaml } from "./spec-yaml";
import { Sentence } from "../../components/sentence";
import { tightestBudget } from "../../lib/tightest-budget";

type Recipe = Schemas["Recipe"];
type SpecError = Schemas["Problem"];

export default function NewJobPage() {
  const all = useQuery(recipes);
  const query = useLocation().searchParams;
  const from = query.get("from");
  const source = useQuery({ ...jobQuery(from ?? ""), enabled: from !== null });
  const ready = all.data && (from === null || source.data || source.error);
  return (
    <Page title="New job" wide>
      <ProblemNote error={source.error} />
      <Async reading={{ ...all, data: ready ? all.data : undefined }} rows={6}>
        {(recipes) => <Form recipes={recipes} initial={initialSpec(recipes, query.get("recipe"), source.data)} />}
      </Async>
    </Page>
  );
}

function initialSpec(all: Recipe[], wanted: string | null, source: Job | undefined): string {
  if (source) return specToYaml({ ...source.spec, name: undefined });
  const recipe = all.find(({ name }) => name === wanted) ?? all.find(({ data }) => data === "digits") ?? all[0];
  return recipe ? specTemplate(recipe) : "";
}

function specTemplate(recipe: Recipe): string {
  const data = recipe.data === "digits" ? "" : "data:\n  train: /path/to/images\n";
  return `recipe: ${recipe.name}\n${data}`;
}

/** The data folder field by kind of data; the digits data set is built in. */
const DATA_FIELDS: Record<string, { label: string; help: string }> = {
  cifar10: { label: "CIFAR-10 folder", help: "The binary or Python version, below a data root of the service." },
  imagefolder: { label: "Image folder", help: "One subfolder per class, below a data root of the service." },
};

function groupByFamily(all: Recipe[]): [string, Recipe[]][] {
  const familyOf = ({ name }: Recipe) => name.split("/", 1)[0]!;
  return [...new Set(all.map(familyOf))].map((family) => [family, all.filter((one) => familyOf(one) === family)]);
}

function Form({ recipes: all, initial }: { recipes: Recipe[]; initial: string }) {
  const [text, setText] = useState(initial);
  const [validText, setValidText] = useState(initial); // what the form shows while the text has a slip
  const [key, setKey] = useState(newIdempotencyKey);
  const syntaxError = yamlError(text);
  const recipe = all.find(({ name }) => name === readField(validText, ["recipe"]).replace(/@\d+$/, ""));
  const dataField = recipe && DATA_FIELDS[recipe.data];
  const gpus = useQuery({ ...offers, select: gpuChoices }).data;

  const validation = useMutation({ mutationFn: async () => submitSpec(text, true) });
  const submit = useMutation({
    mutationFn: async () => submitSpec(text, false, key),
    onSuccess: (job) => {
      queries.setQueryData(jobQuery(job.id).queryKey, job);
      void queries.invalidateQueries({ queryKey: ["jobs"] });
      navigate(`/jobs/${job.id}`);
    },
  });

  /** A changed text is a new request: it gets its own idempotency key, and earlier errors are cleared. */
  function edit(next: string) {
    setText(next);
    if (yamlError(next) === null) setValidText(next);
    setKey(newIdempotencyKey());
    validation.reset();
    submit.reset();
  }

  const error = submit.error ?? validation.error;
  const errors = error instanceof Problem ? error.document.errors : [];
  const set = (path: Path, value: unknown) => edit(writeField(text, path, value));
  const field = (path: Path) => ({ value: readField(validText, path), errors: errorsAt(errors, path), disabled: syntaxError !== null });
  const formPointers = new Set(FORM_PATHS.map((path) => pointer(path)).concat((recipe?.params ?? []).map(({ name }) => `/params/${name}`)));
  const otherErrors = errors.filter((specError) => !formPointers.has(specError.pointer));

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
            disabled={syntaxError !== null}
            value={recipe?.name ?? ""}
            onChange={(event) => {
              const chosen = all.find(({ name }) => name === event.target.value);
              if (chosen) edit(specTemplate(chosen));
            }}
          >
            {!recipe && <option value="">Select a recipe</option>}
            {groupByFamily(all).map(([family, members]) => (
              <optgroup key={family} label={family}>
                {members.map(({ name, title }) => (
                  <option key={name} value={name}>
                    {name}: {title}
                  </option>
                ))}
              </optgroup>
            ))}
          </select>
          {recipe && <p className="muted">{recipe.description}</p>}
        </Panel>
        {dataField && (
          <Panel title="Data">
            <Field {...dataField} {...field(["data", "train"])} set={(typed) => set(["data", "train"], typed || undefined)} wide />
          </Panel>
        )}
        <Panel title="Resources and limits">
          <div className="fields">
            <Field label="Machines" help="Number of nodes (distributed training). Leave blank for one, or for as many as the time limit requires." type="number" min={1} placeholder="1" {...field(["resources", "nodes"])} set={(typed) => set(["resources", "nodes"], parseValue(typed, "int"))} />
            <Field label="GPUs" help={gpuHelp(gpus)} placeholder="none needed" suggestions={gpus ?? []} {...field(["resources", "gpu"])} set={(typed) => set(["resources", "gpu"], typed.trim() || undefined)} />
            <Choice label="Spot instances" help="Cheaper; they may be preempted, and the job then resumes from a checkpoint." options={["prefer", "only", "never"]} {...field(["resources", "spot"])} set={(typed) => set(["resources", "spot"], typed || undefined)} />
            <Field label="Cost limit, dollars" help="The most that the job may cost. Leave blank for the limits of the budgets." inputMode="decimal" placeholder="none" {...field(["limits", "cost"])} set={(typed) => set(["limits", "cost"], typed.trim() || undefined)} />
            <Field label="Hourly limit, dollars" help="Of all machines together: dearer ones are not rented." inputMode="decimal" placeholder="none" {...field(["limits", "rate"])} set={(typed) => set(["limits", "rate"], typed.trim() || undefined)} />
            <Field label="Time limit" help="Training time, e.g. 90s, 5m, 2h, 1d." placeholder="none" {...field(["limits", "time"])} set={(typed) => set(["limits", "time"], typed.trim() || undefined)} />
            <Field label="Deadline" help="By when it must be done: 12h from now, or 2026-12-04T09:00+01:00. What on-demand machines would cost is reserved." placeholder="none" {...field(["limits", "deadline"])} set={(typed) => set(["limits", "deadline"], typed.trim() || undefined)} />
            <Choice label="If out of budget" help="Pause or stop after a checkpoint; finish reserves the cost of the time limit before it starts." options={["pause", "stop", "finish"]} {...field(["on_budget"])} set={(typed) => set(["on_budget"], typed || undefined)} />
            <Field label="Initialize from" help="job/ID, or the path of a model below a data root." placeholder="random weights" {...field(["init"])} set={(typed) => set(["init"], typed.trim() || undefined)} />
            <Field label="Name" help="Display name of the job." placeholder={recipe?.name ?? ""} {...field(["name"])} set={(typed) => set(["name"], typed || undefined)} />
          </div>
        </Panel>
        {recipe && (
          <Panel title="Parameters" aside={<span className="muted">leave blank for the default</span>}>
            <div className="fields">
              {recipe.params.map((param) => (
                <Parameter key={param.name} param={param} {...field(["params", param.name])} set={(typed) => set(["params", param.name], parseValue(typed, param.type))} />
              ))}
            </div>
          </Panel>
        )}
      </div>
      <div className="stack sticky">
        <Panel title="Job spec" aside={<span className="muted">edit the form or the YAML</span>}>
          <textarea
            className="spec"
            aria-label="Job spec, YAML"
            spellCheck={false}
            rows={Math.min(28, Math.max(10, text.split("\n").length + 1))}
            value={text}
            onChange={(event) => edit(event.target.value)}
          />
          {syntaxError && (
            <p className="field-error" role="alert">
              {syntaxError}
            </p>
          )}
          {otherErrors.map((specError) => (
            <p key={specError.pointer + specError.message} className="field-error" role="alert">
              <code>{specError.pointer.slice(1).replaceAll("/", ".") || "spec"}</code> <Sentence text={specError.message} />
            </p>
          ))}
          {errors.length === 0 && <ProblemNote error={error} />}
          {errors.length > otherErrors.length && (
            <p className="field-error" role="alert">
              {errors.length - otherErrors.length === 1 ? "One field" : `${errors.length - otherErrors.length} fields`} of the form must be corrected.
            </p>
          )}
          {validation.isSuccess && (
            <p className="note good" role="status">
              Spec is valid{validation.data.cost.limit ? `, cost limit ${formatDollars(validation.data.cost.limit)}` : ""}.
            </p>
          )}
          {syntaxError !== null && <p className="muted">The quote is of the spec as it was before the error in its YAML.</p>}
          <QuotePanel text={validText} />
          <div className="row end">
            <BudgetNote />
            <button type="button" disabled={syntaxError !== null || validation.isPending} onClick={() => validation.mutate()}>
              {validation.isPending ? "Validating…" : "Validate"}
            </button>
            <button type="submit" className="primary" disabled={syntaxError !== null || submit.isPending}>
              {submit.isPending ? "Submitting…" : "Submit"}
            </button>
          </div>
        </Panel>
      </div>
    </form>
  );
}

const FORM_PATHS: Path[] = [["data", "train"], ["resources", "nodes"], ["resources", "gpu"], ["resources", "spot"], ["limits", "cost"], ["limits", "rate"], ["limits", "time"], ["limits", "deadline"], ["on_budget"], ["init"], ["name"]];

async function submitSpec(text: string, dry: boolean, key?: string): Promise<Job> {
  return body(
    await api.POST("/v1/jobs", {
      params: { header: key ? { "Idempotency-Key": key } : {} },
      body: { spec: text, dry_run: dry },
    }),
  ) as Job;
}

interface FieldProps {
  value: string;
  errors: SpecError[];
  disabled: boolean;
  set: (typed: string) => void;
}

function Parameter({ param, ...rest }: { param: Schemas["RecipeParameter"] } & FieldProps) {
  const defaultText = param.default === null || param.default === undefined ? "" : String(param.default);
  const range = param.minimum !== null && param.maximum !== null ? ` ${param.minimum} to ${param.maximum}.` : "";
  const help = `${param.help}${range}`;
  if (param.choices) return <Choice label={param.name} help={help} options={param.choices.map(String)} defaultOption={defaultText} {...rest} />;
  if (param.type === "bool") return <Choice label={param.name} help={help} options={["true", "false"]} defaultOption={defaultText} {...rest} />;
  return <Field label={param.name} help={help} placeholder={defaultText} inputMode={param.type === "str" ? "text" : "decimal"} {...rest} />;
}

function Field({ label, help, value, errors, disabled, set, suggestions = [], wide = false, ...input }: {
  label: string;
  help: string;
  suggestions?: { value: string; label: string }[];
  wide?: boolean;
  type?: string;
  min?: number;
  placeholder?: string;
  inputMode?: "decimal" | "text";
} & FieldProps) {
  // The text stays as typed while the field has focus; the spec may hold it in another notation.
  const [draft, setDraft] = useState<string | null>(null);
  return (
    <Labelled label={label} help={help} errors={errors} wide={wide}>
      {(ids) => (
        <>
          <input
            {...ids}
            {...input}
            autoComplete="off"
            disabled={disabled}
            list={suggestions.length > 0 ? `${ids.id}-suggestions` : undefined}
            value={draft ?? value}
            onBlur={() => setDraft(null)}
            onChange={(event) => {
              setDraft(event.target.value);
              set(event.target.value);
            }}
          />
          {suggestions.length > 0 && (
            <datalist id={`${ids.id}-suggestions`}>
              {suggestions.map((one) => (
                <option key={one.value} value={one.value}>
                  {one.label}
                </option>
              ))}
            </datalist>
          )}
        </>
      )}
    </Labelled>
  );
}

function Choice({ label, help, options, defaultOption, value, errors, disabled, set }: {
  label: string;
  help: string;
  options: string[];
  defaultOption?: string;
} & FieldProps) {
  return (
    <Labelled label={label} help={help} errors={errors}>
      {(ids) => (
        <select {...ids} disabled={disabled} value={value} onChange={(event) => set(event.target.value)}>
          <option value="">{defaultOption ?? options[0]} (default)</option>
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

function Labelled({ label, help, errors, wide = false, children }: {
  label: string;
  help: string;
  errors: SpecError[];
  wide?: boolean;
  children: (ids: { id: string; "aria-describedby": string; "aria-invalid": boolean }) => ReactNode;
}) {
  const id = useId();
  return (
    <div className={wide ? "field wide" : "field"}>
      <label htmlFor={id}>{label}</label>
      {children({ id, "aria-describedby": `${id}-help`, "aria-invalid": errors.length > 0 })}
      <p id={`${id}-help`} className={errors.length > 0 ? "field-error" : "help"}>
        {errors.length > 0 ? <Sentence text={errors.map(({ message }) => message).join(" ")} /> : help}
      </p>
    </div>
  );
}

function BudgetNote() {
  const budget = tightestBudget(useQuery(budgets).data ?? [], useQuery(me).data?.user);
  return budget?.left ? <span className="muted grow">{formatDollars(budget.left)} left in the {budget.kind} budget</span> : <span className="grow" />;
}

function errorsAt(errors: SpecError[], path: Path): SpecError[] {
  return errors.filter((specError) => specError.pointer === pointer(path));
}

function pointer(path: Path): string {
  return path.map((part) => `/${String(part).replaceAll("~", "~0").replaceAll("/", "~1")}`).join("");
}

