/** What the reader may do. The service decides each time; this spares the buttons that it would refuse. */
import { useQuery } from "@tanstack/react-query";
import { me } from "../api/queries";
import type { Schemas } from "../api/client";

export function useRights(): { run: boolean; ask: boolean } {
  const who = useQuery(me).data;
  const may = (scope: NonNullable<Schemas["Me"]["scopes"]>[number]) =>
    who !== undefined && who.role !== "viewer" && (!who.scopes || who.scopes.includes(scope));
  return { run: may("jobs"), ask: may("budgets") };
}
