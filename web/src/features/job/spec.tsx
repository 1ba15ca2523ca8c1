import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { type Job, recipes } from "../../api/resources";
import { CopyButton, Panel } from "../../components/parts";
import { Link } from "../../router";
import { commandOf, yamlOf } from "../new-job/spec";

export default function SpecPanel({ job }: { job: Job }) {
  const [form, setForm] = useState<"yaml" | "json">("yaml");
  const recipe = useQuery(recipes).data?.find(({ name }) => name === job.recipe?.replace(/@\d+$/, ""));
  const defaults = Object.fromEntries((recipe?.params ?? []).map((param) => [param.name, param.default]));
  const text = form === "yaml" ? yamlOf(job.spec) : `${JSON.stringify(job.spec, null, 2)}\n`;
  return (
    <Panel
      title="Spec"
      aside={
        <div className="tools">
          <div className="segments" role="group" aria-label="Format">
            {(["yaml", "json"] as const).map((one) => (
              <button key={one} type="button" aria-pressed={form === one} onClick={() => setForm(one)}>
                {one.toUpperCase()}
              </button>
            ))}
          </div>
          <CopyButton text={text} />
          <CopyButton text={commandOf(job.spec, defaults)} label="Copy as command" />
        </div>
      }
    >
      <pre className="spec" tabIndex={0}>{text}</pre>
      <p className="foot">
        <Link to={`/new?from=${job.id}`}>Start another from this</Link>
      </p>
    </Panel>
  );
}
