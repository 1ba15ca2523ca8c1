/** Who works in the team, and what each may do. */
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api, body, type Schemas } from "../../api/client";
import { members, queries } from "../../api/queries";
import { Async } from "../../components/async";
import { ButtonWithReason } from "../../components/button-with-reason";
import { ConfirmDialog } from "../../components/confirm-dialog";
import { Panel } from "../../components/panel";
import { ProblemNote } from "../../components/problem-note";
import { TableScroll } from "../../components/table-scroll";
import { reread } from "./reread";
import { type Role, ROLES } from "./roles";

type Member = Schemas["Member"];

export function MembersPanel({ admin }: { admin: boolean }) {
  const reading = useQuery(members);
  const [removing, setRemoving] = useState<Member | null>(null);
  const setRole = useMutation({
    mutationFn: async ({ id, role }: { id: string; role: Role }) =>
      body(await api.PUT("/v1/members/{user_id}", { params: { path: { user_id: id } }, body: { role } })),
    onSettled: () => queries.invalidateQueries({ queryKey: members.queryKey }), // until then the choice is on show
  });
  const chosen = setRole.isPending ? setRole.variables : null;
  const remove = useMutation({
    mutationFn: async (id: string) => void (await api.DELETE("/v1/members/{user_id}", { params: { path: { user_id: id } } })),
    onSettled: () => {
      setRemoving(null);
      reread();
    },
  });
  return (
    <Panel title="Members">
      <ProblemNote error={setRole.error ?? remove.error} />
      <Async reading={reading}>
        {(all) => (
          <TableScroll label="Members">
            <table className="stacked people">
              <thead>
                <tr>
                  <th>Name</th>
                  <th>Role</th>
                  <th>Keys</th>
                  {admin && <th aria-label="Actions" />}
                </tr>
              </thead>
              <tbody>
                {all.map((one) => (
                  <tr key={one.id} data-member={one.user}>
                    <td className="name">{one.user}</td>
                    <td data-label="Role">{admin ? <RoleSelect member={one} chosen={chosen?.id === one.id ? chosen.role : null} set={(role) => setRole.mutate({ id: one.id, role })} /> : one.role}</td>
                    <td data-label="Keys">{one.keys}</td>
                    {admin && (
                      <td>
                        <ButtonWithReason type="button" className="small" reason={isOnlyAdmin(one, all) ? "The only admin stays." : ""} onClick={() => setRemoving(one)}>
                          Remove
                        </ButtonWithReason>
                      </td>
                    )}
                  </tr>
                ))}
              </tbody>
            </table>
          </TableScroll>
        )}
      </Async>
      <p className="muted">
        A viewer looks; a member runs jobs and asks for dollars; a lead also decides on the budgets of members; an admin does everything.
      </p>
      {removing && (
        <ConfirmDialog
          title={`Remove ${removing.user}?`}
          confirmLabel="Remove"
          busy={remove.isPending}
          confirm={() => remove.mutate(removing.id)}
          close={() => setRemoving(null)}
        >
          <p>Their keys and logins in this team end at once. Their jobs, and what these cost, stay the team’s.</p>
        </ConfirmDialog>
      )}
    </Panel>
  );
}

function isOnlyAdmin(member: Member, all: Member[]): boolean {
  return member.role === "admin" && all.filter(({ role }) => role === "admin").length === 1;
}

/** `chosen`: the role that is being set. */
function RoleSelect({ member, chosen, set }: { member: Member; chosen: Role | null; set: (role: Role) => void }) {
  return (
    <select aria-label={`Role of ${member.user}`} value={chosen ?? member.role} onChange={(event) => set(event.target.value as Role)}>
      {ROLES.map((role) => (
        <option key={role}>{role}</option>
      ))}
    </select>
  );
}
