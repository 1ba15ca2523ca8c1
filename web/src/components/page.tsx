import { type ReactNode, useEffect } from "react";

/** The main area of a page: document title, heading, actions. */
export function Page({ title, badge, actions, children, wide = false }: {
  title: string;
  /** Shown beside the title; `actions` are shown at the end of the row. */
  badge?: ReactNode;
  actions?: ReactNode;
  children: ReactNode;
  wide?: boolean;
}) {
  useEffect(() => {
    document.title = `${title} · Shoestring`;
  }, [title]);
  return (
    <main id="main" className={wide ? "page wide" : "page"} tabIndex={-1}>
      <div className="page-head">
        <h1>{title}</h1>
        {badge}
        <div className="page-actions">{actions}</div>
      </div>
      {children}
    </main>
  );
}
