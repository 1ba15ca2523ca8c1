import { type ReactNode, useEffect, useId, useRef } from "react";

/** Asks for confirmation of an irreversible action, in a modal <dialog>: focus stays inside, Escape closes it. */
export function ConfirmDialog({ title, children, confirm, close, confirmLabel, busy }: {
  title: string;
  children: ReactNode;
  confirm: () => void;
  close: () => void;
  confirmLabel: string;
  busy: boolean;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} aria-labelledby={id} onClose={close}>
      <h2 id={id}>{title}</h2>
      {children}
      <div className="row end">
        <button type="button" onClick={close}>
          Cancel
        </button>
        <button type="button" className="danger" disabled={busy} onClick={confirm}>
          {busy ? "Please wait…" : confirmLabel}
        </button>
      </div>
    </dialog>
  );
}
