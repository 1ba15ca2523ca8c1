import { unbroken } from "../lib/unbroken";

/** A sentence of the service; what it has between backticks is code. */
export function Sentence({ text }: { text: string }) {
  return <>{text.split("`").map((part, i) => (i % 2 ? <code key={i}>{part}</code> : unbroken(part)))}</>;
}
