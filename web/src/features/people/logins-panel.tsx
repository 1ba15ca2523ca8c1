/** Where the reader is signed in. */
import { useMutation, useQuery } from "@tanstack/react-query";
import { api } from "../../api/client";
import { logins } from "../../api/queries";
import { Async } from "../../components/async";
import { Panel } from "../../components/panel";
import { ProblemNote } from "../../components/problem-note";
import { TableScroll } from "../../components/table-scroll";
import { Time } from "../../components/time";
import { reread } from "./reread";

export function LoginsPanel() {
  const reading = useQuery(logins);
  const end = useMutation({
    mutationFn: async (id: string) => void (await api.DELETE("/v1/sessions/{session_id}", { params: { path: { session_id: id } } })),
    onSettled: reread,
  });
  return (
    <Panel title="Where you are signed in">
      <ProblemNote error={end.error} />
      <Async reading={reading}>
        {(all) => (
          <TableScroll label="Where you are signed in">
            <table className="stacked people">
              <thead>
                <tr>
                  <th>Since</th>
                  <th>Address</th>
                  <th>Browser</th>
                  <th aria-label="Actions" />
                </tr>
              </thead>
              <tbody>
                {all.map((one) => (
                  <tr key={one.id}>
                    <td data-label="Since">
                      <Time at={one.created_at} />
                    </td>
                    <td data-label="Address">{one.address}</td>
                    <td data-label="Browser">{one.current ? "this browser" : one.browser}</td>
                    <td>
                      <button type="button" className="small" disabled={end.isPending} onClick={() => end.mutate(one.id)}>
                        Sign out
                      </button>
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          </TableScroll>
        )}
      </Async>
    </Panel>
  );
}
