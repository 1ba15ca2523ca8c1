import { type ButtonHTMLAttributes, useId } from "react";

/**
 * A button that says why it can't be pressed. `reason`: a sentence, or empty if it can; `busy`: its request is under
 * way, which its label says. `wrong`: something typed is why, rather than something missing. `silent`: the reason already stands beside another button.
 */
export function ButtonWithReason({ reason, busy = false, wrong = false, silent = false, children, ...rest }: {
  reason: string;
  busy?: boolean;
  wrong?: boolean;
  silent?: boolean;
} & ButtonHTMLAttributes<HTMLButtonElement>) {
  const id = useId();
  return (
    <>
      {reason && (
        <span id={id} className={silent ? "visually-hidden" : wrong ? "why-not field-error" : "why-not"}>
          {reason}
        </span>
      )}
      <button {...rest} disabled={reason !== "" || busy} title={reason || undefined} aria-describedby={reason ? id : undefined}>
        {children}
      </button>
    </>
  );
}
