import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { type Job, recipe } from "../../api/queries";
import { CopyButton } from "../../components/copy-button";
import { Panel } from "../../components/panel";
import { Link } from "../../router";
import { specToCommand, specToYaml } from "../new-job/spec-yaml";

export default function SpecPanel({ job }: { job: Job }) {
  const [format, setFormat] = useState<"yaml" | "json">("yaml");
  const { data } = useQuery({ ...recipe(job.recipe ?? ""), enabled: job.recipe !== null });
  const defaults = Object.fromEntries((data?.params ?? []).map((param) => [param.name, param.default]));
  const text = format === "yaml" ? specToYaml(job.spec) : `${JSON.stringify(job.spec, null, 2)}\n`;
  return (
    <Panel
      title="Job spec"
      aside={
        <div className="tools">
          <div className="segments" role="group" aria-label="Format">
            {(["yaml", "json"] as const).map((one) => (
              <button key={one} type="button" aria-pressed={format === one} onClick={() => setFormat(one)}>
                {one.toUpperCase()}
              </button>
            ))}
          </div>
          <CopyButton text={text} />
          <CopyButton text={specToCommand(job.spec, defaults)} label="Copy as command" />
        </div>
      }
    >
      <pre className="spec" tabIndex={0}>{text}</pre>
      <p className="footnote">
        <Link to={`/new?from=${job.id}`}>Duplicate job</Link>
      </p>
    </Panel>
  );
}
