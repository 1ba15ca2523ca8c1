/** Who works in the team and what each may do; the reader's own keys and logins. */
import { useQuery } from "@tanstack/react-query";
import { me } from "../../api/queries";
import { Page } from "../../components/page";
import { InvitationsPanel } from "./invitations-panel";
import { KeysPanel } from "./keys-panel";
import { LoginsPanel } from "./logins-panel";
import { MembersPanel } from "./members-panel";
import { TeamsPanel } from "./teams-panel";

export function PeoplePage() {
  const who = useQuery(me).data;
  const admin = who?.role === "admin";
  return (
    <Page title="People and keys">
      <MembersPanel admin={admin} />
      {admin && <InvitationsPanel />}
      <TeamsPanel admin={admin} />
      <KeysPanel />
      <LoginsPanel />
    </Page>
  );
}
