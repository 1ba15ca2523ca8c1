import { queries } from "../../api/queries";

/** Everything about people, keys and logins: one change may end several of them. */
export function reread(): void {
  void queries.invalidateQueries({ queryKey: ["people"] });
}
