import type { ReactNode } from "react";

/** A table that may be wider, or with `short` longer, than its place: the keyboard reaches it to scroll. */
export function TableScroll({ label, short = false, children }: { label: string; short?: boolean; children: ReactNode }) {
  return (
    <div className={short ? "table-scroll short" : "table-scroll"} tabIndex={0} role="region" aria-label={label}>
      {children}
    </div>
  );
}
