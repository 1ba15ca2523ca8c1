import { useMutation, useQuery } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";
import { api, body, newIdempotencyKey, Problem, type Schemas } from "../../api/client";
import { budgets, me, job as jobQuery, type Job, offers, queries, recipes } from "../../api/queries";
import { formatDollars } from "../../lib/money";
import { counted } from "../../lib/number";
import { Async } from "../../components/async";
import { Page } from "../../components/page";
import { Panel } from "../../components/panel";
import { ProblemNote } from "../../components/problem-note";
import { ButtonWithReason } from "../../components/button-with-reason";
import { keepDraft, readDraft } from "../../lib/drafts";
import { Link, navigate, useLocation } from "../../router";
import { gpuChoices, gpuHelp } from "./gpu-choices";
import { QuotePanel } from "./quote-panel";
import { Choice, Field, Fold, Parameter } from "./spec-fields";
import { parseValue, yamlError, type Path, readField, specChanges, writeField, specToYaml, withoutDefaults } from "./spec-yaml";
import { Sentence } from "../../components/sentence";
import { tightestBudget } from "../../lib/tightest-budget";

type Recipe = Schemas["Recipe"];
type SpecError = Schemas["Problem"];

export default function NewJobPage() {
  const all = useQuery(recipes);
  const { search, searchParams: query } = useLocation();
  const user = useQuery(me).data?.user ?? "";
  const from = query.get("from");
  const source = useQuery({ ...jobQuery(from ?? ""), enabled: from !== null });
  const ready = all.data && (from === null || source.data || source.error);
  return (
    <Page title="New job" wide>
      <ProblemNote error={source.error} />
      <Async reading={{ ...all, data: ready ? all.data : undefined }} rows={6}>
        {(recipes) => (
          <Form
            key={search}
            recipes={recipes}
            initial={initialSpec(recipes, query.get("recipe"), source.data)}
            source={source.data}
            draftName={`${user} /new${search}`}
          />
        )}
      </Async>
    </Page>
  );
}

function initialSpec(all: Recipe[], wanted: string | null, source: Job | undefined): string {
  if (source) {
    // The job's recipe may be of an earlier version than this one, whose defaults are others.
    const recipe = all.find(({ name, version }) => `${name}@${version}` === source.recipe);
    const params = (source.spec.params ?? {}) as Record<string, unknown>;
    return specToYaml({ ...source.spec, name: undefined, params: withoutDefaults(params, recipe ? paramDefaults(recipe) : {}) });
  }
  const recipe = all.find(({ name }) => name === wanted) ?? all.find(({ data }) => data === "digits") ?? all[0];
  return recipe ? specTemplate(recipe) : "";
}

function paramDefaults({ params }: Recipe): Record<string, unknown> {
  return Object.fromEntries(params.map((param) => [param.name, param.default]));
}

function specTemplate(recipe: Recipe): string {
  return `recipe: ${recipe.name}\n`;
}

/** The data folder field by kind of data; the digits data set is built in. */
const DATA_FIELDS: Record<string, { label: string; help: string; placeholder: string }> = {
  cifar10: { label: "CIFAR-10 folder", placeholder: "/path/to/cifar10", help: "The binary or Python version, below a data root of the service." },
  imagefolder: { label: "Image folder", placeholder: "/path/to/images", help: "One subfolder per class, below a data root of the service." },
};

function groupByFamily(all: Recipe[]): [string, Recipe[]][] {
  const familyOf = ({ name }: Recipe) => name.split("/", 1)[0]!;
  return [...new Set(all.map(familyOf))].map((family) => [family, all.filter((one) => familyOf(one) === family)]);
}

/** The parameters that most jobs set; the others are folded away. */
const USUAL_PARAMS = ["epochs", "batch_size", "lr"];

function Form({ recipes: all, initial, source, draftName }: {
  recipes: Recipe[];
  initial: string;
  /** The job that this one is a copy of. */
  source: Job | undefined;
  draftName: string;
}) {
  const [draft] = useState(() => readDraft(draftName));
  const [restored, setRestored] = useState(draft !== null && draft !== initial);
  const [text, setText] = useState(draft ?? initial);
  // What the form shows while the text has a slip.
  const [validText, setValidText] = useState(draft !== null && yamlError(draft) === null ? draft : initial);
  const [key, setKey] = useState(newIdempotencyKey);
  const syntaxError = yamlError(text);
  const recipe = all.find(({ name }) => name === readField(validText, ["recipe"]).replace(/@\d+$/, ""));
  const dataField = recipe && DATA_FIELDS[recipe.data];
  const gpus = useQuery({ ...offers, select: gpuChoices }).data;

  const validation = useMutation({ mutationFn: async () => submitSpec(text, true) });
  const submit = useMutation({
    mutationFn: async (sent: string) => submitSpec(sent, false, key),
    onSuccess: (job, sent) => {
      if (readDraft(draftName) === sent) keepDraft(draftName, null); // what was typed meanwhile is another draft
      queries.setQueryData(jobQuery(job.id).queryKey, job);
      void queries.invalidateQueries({ queryKey: ["jobs"] });
    },
  });

  /** A changed text is a new request: it gets its own idempotency key, and earlier errors are cleared. */
  function edit(next: string) {
    setText(next);
    keepDraft(draftName, next === initial ? null : next);
    if (yamlError(next) === null) setValidText(next);
    setKey(newIdempotencyKey());
    validation.reset();
    if (!submit.isPending) submit.reset();
  }

  const error = submit.error ?? validation.error;
  const errors = error instanceof Problem ? error.document.errors : [];
  const set = (path: Path, value: unknown) => edit(writeField(text, path, value));
  const field = (path: Path, also: SpecError[] = []) => ({
    value: readField(validText, path),
    errors: [...errorsAt(errors, path), ...also],
    disabled: syntaxError !== null,
  });
  const missingData = errorsAt(errors, ["data"]);
  /** How many of the fields at these paths have a value, and errors. */
  const state = (paths: Path[]) => ({
    set: paths.filter((path) => readField(validText, path) !== "").length,
    errors: paths.reduce((sum, path) => sum + errorsAt(errors, path).length, 0),
  });
  const dataPaths: Path[] = dataField ? [["data"], ["data", "train"]] : [];
  const formPointers = new Set([...USUAL_PATHS, ...MORE_PATHS, ...dataPaths].map((path) => pointer(path)).concat((recipe?.params ?? []).map(({ name }) => `/params/${name}`)));
  const otherErrors = errors.filter((specError) => !formPointers.has(specError.pointer));

  const [usual, more] = splitParams(recipe?.params ?? []);
  const slip = syntaxError === null ? "" : "Correct the YAML first: its error is shown below the spec.";
  const parameter = (param: Schemas["RecipeParameter"]) => (
    <Parameter key={param.name} param={param} {...field(["params", param.name])} set={(typed) => set(["params", param.name], parseValue(typed, param.type))} />
  );
  const discard = (
    <button
      type="button"
      className="small"
      onClick={() => {
        edit(initial);
        setRestored(false);
      }}
    >
      Discard draft
    </button>
  );

  return (
    <form
      className="new-job"
      noValidate
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        submit.mutate(text, { onSuccess: (job) => navigate(`/jobs/${job.id}`) }); // unless the reader has gone elsewhere
      }}
    >
      {restored && (
        <div className="note row whole" role="status">
          <span className="grow">What you had typed here before is back.</span>
          {discard}
        </div>
      )}
      {source && <Changes source={source} changes={specChanges(initial, validText)} />}
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
            <Field {...dataField} {...field(["data", "train"], missingData)} set={(typed) => set(["data", "train"], typed || undefined)} wide />
          </Panel>
        )}
        <Panel title="Resources and limits">
          <div className="fields">
            <Field label="Machines" help="Number of nodes (distributed training). Leave blank for one, or for as many as the time limit requires." type="number" min={1} placeholder="1" {...field(["resources", "nodes"])} set={(typed) => set(["resources", "nodes"], parseValue(typed, "int"))} />
            <Field label="GPUs" help={gpuHelp(gpus)} placeholder="none needed" suggestions={gpus ?? []} {...field(["resources", "gpu"])} set={(typed) => set(["resources", "gpu"], typed.trim() || undefined)} />
            <Field label="Cost limit, dollars" help="The most that the job may cost. Leave blank for the limits of the budgets." inputMode="decimal" placeholder="none" {...field(["limits", "cost"])} set={(typed) => set(["limits", "cost"], typed.trim() || undefined)} />
            <Field label="Time limit" help="Training time, e.g. 90s, 5m, 2h, 1d." placeholder="none" {...field(["limits", "time"])} set={(typed) => set(["limits", "time"], typed.trim() || undefined)} />
          </div>
          <Fold title="Name, spot, deadline and other options" {...state(MORE_PATHS)}>
            <Field label="Name" help="Display name of the job." placeholder={recipe?.name ?? ""} {...field(["name"])} set={(typed) => set(["name"], typed || undefined)} />
            <Choice label="Spot instances" help="Cheaper; they may be preempted, and the job then resumes from a checkpoint." options={["prefer", "only", "never"]} {...field(["resources", "spot"])} set={(typed) => set(["resources", "spot"], typed || undefined)} />
            <Field label="Hourly limit, dollars" help="Of all machines together: dearer ones are not rented." inputMode="decimal" placeholder="none" {...field(["limits", "rate"])} set={(typed) => set(["limits", "rate"], typed.trim() || undefined)} />
            <Field label="Deadline" help="By when it must be done: 12h from now, or 2026-12-04T09:00+01:00. What on-demand machines would cost is reserved." placeholder="none" {...field(["limits", "deadline"])} set={(typed) => set(["limits", "deadline"], typed.trim() || undefined)} />
            <Choice label="If out of budget" help="Pause or stop after a checkpoint; finish reserves the cost of the time limit before it starts." options={["pause", "stop", "finish"]} {...field(["on_budget"])} set={(typed) => set(["on_budget"], typed || undefined)} />
            <Field label="Initialize from" help="job/ID, or the path of a model below a data root." placeholder="random weights" {...field(["init"])} set={(typed) => set(["init"], typed.trim() || undefined)} />
          </Fold>
        </Panel>
        {recipe && (
          <Panel title="Parameters" aside={<span className="muted">leave blank for the default</span>}>
            <div className="fields">{usual.map(parameter)}</div>
            {more.length > 0 && (
              <Fold title={counted(more.length, "more parameter")} {...state(more.map(({ name }) => ["params", name]))}>
                {more.map(parameter)}
              </Fold>
            )}
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
          <div className="row end">
            <BudgetNote />
            <ButtonWithReason type="button" reason={slip} busy={validation.isPending} onClick={() => validation.mutate()}>
              {validation.isPending ? "Validating…" : "Validate"}
            </ButtonWithReason>
            <ButtonWithReason type="submit" className="primary" reason={slip} silent busy={submit.isPending}>
              {submit.isPending ? "Submitting…" : "Submit"}
            </ButtonWithReason>
          </div>
          {text !== initial && !restored && (
            <div className="row end">
              <span className="muted grow">Your draft is kept in this browser tab until it is submitted.</span>
              {discard}
            </div>
          )}
          {syntaxError !== null && <p className="muted">The quote is of the spec as it was before the error in its YAML.</p>}
          {/* Below the buttons: it changes while one types, and would move them from under the pointer. */}
          <QuotePanel text={validText} />
        </Panel>
      </div>
    </form>
  );
}

const USUAL_PATHS: Path[] = [["resources", "nodes"], ["resources", "gpu"], ["limits", "cost"], ["limits", "time"]];
const MORE_PATHS: Path[] = [["name"], ["resources", "spot"], ["limits", "rate"], ["limits", "deadline"], ["on_budget"], ["init"]];

function splitParams(params: Schemas["RecipeParameter"][]): [Schemas["RecipeParameter"][], Schemas["RecipeParameter"][]] {
  const usual = ({ name }: Schemas["RecipeParameter"]) => USUAL_PARAMS.includes(name);
  return [params.filter(usual), params.filter((param) => !usual(param))];
}

/** What a copy of a job changes about it. */
function Changes({ source, changes }: { source: Job; changes: ReturnType<typeof specChanges> }) {
  return (
    <div className="note whole" role="status" data-changes>
      <p>
        Copy of <Link to={`/jobs/${source.id}`}>{source.name}</Link>. {changes.length === 0 ? "Nothing is changed yet." : "Changed:"}
      </p>
      {changes.length > 0 && (
        <ul className="plain">
          {changes.map(({ path, before, after }) => (
            <li key={path}>
              <code>{path}</code> {before ?? "not set"} → <strong>{after ?? "not set"}</strong>
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}

async function submitSpec(text: string, dry: boolean, key?: string): Promise<Job> {
  return body(
    await api.POST("/v1/jobs", {
      params: { header: key ? { "Idempotency-Key": key } : {} },
      body: { spec: text, dry_run: dry },
    }),
  ) as Job;
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

