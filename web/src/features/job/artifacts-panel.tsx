import { useQuery } from "@tanstack/react-query";
import { artifacts, type Job } from "../../api/queries";
import { formatBytes } from "../../lib/number";
import { Command } from "../../components/copy-button";
import { Panel } from "../../components/panel";

export function ArtifactsPanel({ job }: { job: Job }) {
  const files = useQuery(artifacts(job.id)).data?.artifacts ?? [];
  return (
    <Panel title="Artifacts">
      {files.length === 0 ? (
        <p className="empty small">{job.settled_at ? "This job has no artifacts." : "The model and its metadata appear here after the final checkpoint."}</p>
      ) : (
        <>
          <ul className="artifacts">
            {files.map((file) => (
              <li key={file.name}>
                <a href={file.url} download={file.name} title={`SHA-256 ${file.sha256}`}>
                  {file.name}
                </a>
                <span className="muted num">{formatBytes(file.bytes)}</span>
              </li>
            ))}
          </ul>
          <Command text={`shoestring artifacts get ${job.id}`} />
        </>
      )}
    </Panel>
  );
}
