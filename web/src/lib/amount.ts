/** Amounts of money as somebody types them. The service decides; this says what it would refuse, before it is asked. */

/** A billion dollars, the service's bound. */
const MOST = 1_000_000_000;

/** The amount without blanks and a dollar sign. */
export function typedDollars(text: string): string {
  return text.trim().replace(/^\$\s*/, "");
}

/** Why the text is no amount that can be saved, as a sentence; empty: it is one. `zero`: nothing is an amount too. */
export function amountProblem(text: string, { example = "25.00", zero = true } = {}): string {
  const dollars = typedDollars(text);
  if (dollars === "") return `Enter dollars, such as ${example}.`;
  if (dollars.startsWith("-")) return "Less than $0 is not possible.";
  if (!/^\d+(\.\d+)?$/.test(dollars)) {
    const comma = dollars.includes(",") ? ", without commas" : "";
    return `“${dollars.slice(0, 30)}” is no amount. Enter dollars as a decimal number${comma}, such as ${example}.`;
  }
  const [whole = "", fraction = ""] = dollars.split(".");
  if (fraction.length > 6) return "The smallest amount is a millionth of a dollar: at most six decimals.";
  if (whole.length > 12 || Number(dollars) > MOST) return "Too large: a billion dollars is the most.";
  if (!zero && Number(dollars) === 0) return "Enter more than $0.";
  return "";
}
