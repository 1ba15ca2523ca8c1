import type { Schemas } from "../../api/client";

export type Role = Schemas["Member"]["role"];

export const ROLES: readonly Role[] = ["viewer", "member", "lead", "admin"];
