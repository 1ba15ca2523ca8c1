import { useQuery } from "@tanstack/react-query";
import { artifacts, type Job } from "../../api/resources";
import { bytes } from "../../lib/number";
import { Command, Panel } from "../../components/parts";

export function FilesPanel({ job }: { job: Job }) {
  const files = useQuery(artifacts(job.id)).data?.artifacts ?? [];
  return (
    <Panel title="Files">
      {files.length === 0 ? (
        <p className="empty small">{job.settled_at ? "This job left no files." : "The model and its description appear here with the final checkpoint."}</p>
      ) : (
        <>
          <ul className="files">
            {files.map((file) => (
              <li key={file.name}>
                <a href={file.url} download={file.name} title={`SHA-256 ${file.sha256}`}>
                  {file.name}
                </a>
                <span className="dim num">{bytes(file.bytes)}</span>
              </li>
            ))}
          </ul>
          <Command text={`shoestring artifacts get ${job.id}`} />
        </>
      )}
    </Panel>
  );
}
