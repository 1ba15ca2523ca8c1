import { useQuery } from "@tanstack/react-query";
import { artifacts, type Job } from "../../api/queries";
import { shortId } from "../../lib/labels";
import { formatBytes } from "../../lib/number";
import { Async } from "../../components/async";
import { Command } from "../../components/copy-button";
import { Panel } from "../../components/panel";

export function ArtifactsPanel({ job }: { job: Job }) {
  return (
    <Panel title="Artifacts">
      <Async reading={useQuery(artifacts(job.id))}>
        {({ artifacts: files }) =>
          files.length === 0 ? (
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
              <Command text={`shoestring artifacts get ${shortId(job.id)}`} />
            </>
          )
        }
      </Async>
    </Panel>
  );
}
